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
    energy = deltas.square().sum((1, 2), keepdim=True)
    subspace = deltas.mT @ deltas / energy.where(energy > 0, 1)
    return _adam(deltas, subspace, iter_num, lr)


def interference(merged: Tensor, deltas: Tensor) -> Tensor:
    """The loss, a scalar; see the top of the file."""
    energy = deltas.square().sum((1, 2))
    products = ((merged - deltas) @ deltas.mT).square().sum((1, 2))
    return (products / energy.where(energy > 0, 1)).sum()


def _adam(deltas: Tensor, subspace: Tensor, steps: int, lr: float) -> Tensor:
    """Adam (Kingma and Ba 2015) with its usual constants on the loss, whose gradient is written out."""
    merged = deltas.sum(0)
    mean, square = torch.zeros_like(merged), torch.zeros_like(merged)
    for step in range(1, steps + 1):
        slope = 2 * ((merged - deltas) @ subspace).sum(0)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope.square()
        merged = merged - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return merged
