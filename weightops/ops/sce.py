"""SCE: select by variance, calculate weights from energy, erase the minority sign.

Source: Wan et al. 2024 (FuseChat), arXiv 2408.07990.
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import Range
from .sparsify import flat, largest, per_model
from .ties import agreement
from .torch_later import Tensor, torch


@operator(reads="tensor", paper="2408.07990")
def sce(deltas: Tensor, *, select_topk: Annotated[float, Range(0, 1)] = 1.0) -> Tensor:
    """Merge the entries on which the models differ most, each model weighted by its mean square there.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        select_topk: Share of the entries of non-zero variance to keep, the largest variance first, among equals the
            lower flat index (ours); 1 keeps every entry.

    Returns:
        The merged task vector, [...]; zero where nothing agrees.

    >>> sce(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    tensor([1., 2.])
    """
    chosen = deltas.where(selected(deltas, select_topk), 0)
    weights = per_model(_energy(chosen), chosen.double()) * agreement(chosen)
    total = weights.sum(0)
    merged = (weights * chosen).sum(0) / total.where(total > 0, 1)
    return merged.to(deltas.dtype)


def selected(deltas: Tensor, select_topk: float) -> Tensor:
    """The mask of the entries to merge: [n, ...] to [...].

    The order is that of the variance: entries are compared by n^2 times it.
    """
    if select_topk >= 1:
        return torch.ones_like(deltas[0], dtype=torch.bool)
    score = spread(deltas)
    return largest(score, int(int(score.count_nonzero()) * select_topk))


def spread(deltas: Tensor) -> Tensor:
    """n^2 times the variance over the models: [n, ...] to [...], computed in fp64 and rounded to the deltas' dtype.

    By sums about the first model, exactly zero where all models are equal. No digits cancel: one of the n differences
    is zero, so the result is at least the sum of their squares.

    >>> spread(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor([4., 0.])
    """
    total = torch.zeros(deltas.shape[1:], dtype=torch.float64, device=deltas.device)
    squares = torch.zeros_like(total)
    for delta in deltas[1:]:  # in order, as the fused form adds
        shifted = delta.double() - deltas[0].double()
        total, squares = total + shifted, squares + shifted.square()
    return (len(deltas) * squares - total.square()).to(deltas.dtype)


def _energy(deltas: Tensor) -> Tensor:
    """Each model's share of the summed squares, in fp64: the squares of fine-tuned deltas are tiny."""
    squares = flat(deltas.double()).square().sum(1)
    return squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
