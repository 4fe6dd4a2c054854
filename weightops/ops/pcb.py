"""PCB-Merging: let parameters compete, within a task and between tasks.

Source: Du et al. 2024, arXiv 2410.02396, in the form of the authors' code: tanh between tasks, outliers clipped. There
the model is one long vector; here each tensor competes by itself (ours).
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import PerModel, Range
from .sparsify import flat, per_model, ranked
from .torch_later import Tensor, torch

CLIPPED = 1e-4  # share of the smallest and of the largest magnitudes


@operator(reads="tensor", paper="2410.02396", breaks=("identical", "one", "size"))
def pcb(
    deltas: Tensor, *, weight: PerModel = 1.0, pcb_ratio: Annotated[float, Range(0, 1)] = 0.1, lambda_: float = 1.0
) -> Tensor:
    """Average the task vectors by scores, each entry over the tasks for which it scores high.

    The score of an entry is exp(n * a) * tanh(entry * sum over tasks), where a is its squared clipped magnitude, scaled
    to [0, 1] within the task; exp and tanh are computed in fp64 and their product rounded (ours), so that the scores
    do not depend on a library's fp32 functions. Low scores are raised to a cut, and the scores from the cut to the top
    scaled to [0, 1].

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        pcb_ratio: Share of the entries of each task that scores at or above the cut.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...]; zero where no task scores.

    >>> pcb(torch.tensor([[4.0, 1.0, 1.0, 0.0], [4.0, 0.0, 1.0, 1.0]]), pcb_ratio=0.5)
    tensor([4., 0., 0., 0.])
    """
    vectors = flat(deltas)
    clipped = _clip(vectors)
    gain, products = len(deltas) * _spread(clipped.abs()) ** 2, vectors * vectors.sum(0)
    scores = (gain.double().exp() * products.double().tanh()).to(deltas.dtype)
    cut = min(int(vectors.shape[1] * (1 - pcb_ratio)), vectors.shape[1] - 1)
    share = _spread(scores.clamp(min=_ranked(scores, cut)))
    merged = (share * clipped * per_model(weight, clipped)).sum(0) / share.sum(0).clamp(min=1e-12)
    return merged.reshape(deltas.shape[1:]) * lambda_


def _clip(vectors: Tensor) -> Tensor:
    """Clip the smallest and the largest magnitudes of each task to the nearest other magnitude."""
    magnitude, few = vectors.abs(), int(CLIPPED * vectors.shape[1])
    ends = _ranked(magnitude, few, vectors.shape[1] - 1 - few)
    return vectors.sign() * magnitude.clamp(ends[:, :1], ends[:, 1:])


def _ranked(vectors: Tensor, *ranks: int) -> Tensor:
    """The entries at some ranks, counted from 0 for the smallest, of each vector: [n, d] to [n, ranks]."""
    return torch.stack([ranked(vector, *ranks) for vector in vectors])


def _spread(vectors: Tensor) -> Tensor:
    """Scale each vector to [0, 1]; a constant vector becomes all ones (ours: every entry is as good as the best)."""
    low, high = vectors.amin(1, keepdim=True), vectors.amax(1, keepdim=True)
    return torch.where(high > low, (vectors - low) / (high - low), 1)
