"""WUDI-Merging: finds the merged task vector that interferes least with each task.

Source: Cheng et al. 2025, arXiv 2503.08099. The rows of a task vector stand in for the task's inputs, and the loss is
the sum over tasks of ||(merged - delta) delta^T||^2 / ||delta||^2.
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import Range
from .torch_later import Tensor, torch


@operator(reads="matrix", paper="2503.08099", breaks=("identical", "size"))
def wudi(
    deltas: Tensor, *, iter_num: Annotated[int, Range(0)] = 300, lr: Annotated[float, Range(0, above_low=True)] = 1e-5
) -> Tensor:
    """Descend from the sum of the task vectors toward the least interference, by Adam, as the authors do.

    Only matrices ([out, in]); other tensors are averaged. The authors leave out the head and the embeddings.

    Args:
        deltas: Task vectors, [n, out, in], fp32 or fp64; an all-zero one has no effect on the loss.
        iter_num: Steps of the descent.
        lr: Step size.

    Returns:
        The merged task vector, [out, in].

    >>> wudi(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), iter_num=3)  # no interference: the sum
    tensor([[1., 1.]])
    """
    if deltas.dim() != 3:
        return deltas.mean(0)
    total = deltas.sum(0)
    subspaces, disturbance = total.new_zeros(total.shape[1], total.shape[1]), torch.zeros_like(total)
    for delta in deltas:
        energy = delta.square().sum()
        subspace = delta.mT @ delta / energy.where(energy > 0, 1)
        subspaces += subspace
        disturbance += (total - delta) @ subspace
    return total + _adam(subspaces, disturbance, iter_num, lr)


def interference(merged: Tensor, deltas: Tensor) -> Tensor:
    """The loss, a scalar; see the top of the file."""
    energy = deltas.square().sum((1, 2))
    products = ((merged - deltas) @ deltas.mT).square().sum((1, 2))
    return (products / energy.where(energy > 0, 1)).sum()


def _adam(subspaces: Tensor, disturbance: Tensor, steps: int, lr: float) -> Tensor:
    """What Adam (Kingma and Ba 2015) with its usual constants adds to the sum of the task vectors.

    Half the loss's gradient is the sum over tasks of (merged - delta) times the task's subspace. In terms of what was
    added, a step takes one product, however many tasks there are.

    Args:
        subspaces: Sum over tasks of delta^T delta / ||delta||^2, [in, in].
        disturbance: Half the gradient at the sum of the task vectors, [out, in].
    """
    added = torch.zeros_like(disturbance)
    mean, square = torch.zeros_like(added), torch.zeros_like(added)
    for step in range(1, steps + 1):
        slope = 2 * (added @ subspaces + disturbance)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope.square()
        added = added - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return added
