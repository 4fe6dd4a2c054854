"""Arcee Fusion: take only the entries that matter most from the model."""

from __future__ import annotations

from .registry import operator
from .sparsify import ranked
from .torch_later import Tensor


@operator(reads="tensor", paper="Arcee AI, mergekit", needs_base=True, models=(1, 1))
def arcee_fusion(models: Tensor, *, base: Tensor) -> Tensor:
    """Take the most important entries from the model, all others from the base.

    Importance is the change times the divergence of its row (the last dimension), read as a distribution. An entry is
    taken at or above the median plus 1.5 times the interquartile range of the importance of all entries.

    Args:
        models: The one model's weights, [1, ...], fp32 or fp64.
        base: The base model's weights, [...].

    Returns:
        [...], every entry the model's or the base's, bit for bit.

    >>> import torch
    >>> arcee_fusion(torch.tensor([[0.0, 0.0, 0.0, 0.1, 5.0]]), base=torch.zeros(5))
    tensor([0., 0., 0., 0., 5.])
    """
    score = importance(models[0], base)
    return models[0].where(score >= fusion_threshold(score), base)


def importance(model: Tensor, base: Tensor) -> Tensor:
    """Change times the row's divergence, in fp64: [..., row]."""
    return (model.double() - base.double()).abs() * divergence(model, base).double()


def divergence(model: Tensor, base: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row, as a distribution, from the base's: [..., row] to [..., 1], fp32.

    A fine-tuned row's divergence is of second order in its change, so it is summed in fp64 and from terms of second
    order: each has its p - q subtracted, which sum to zero. The sum is then rounded to fp32 (ours). So it does not
    depend on the order of the terms, and products with changes of 16-bit weights are exact: equal changes tie.
    """
    p, q = (x.double().softmax(-1) + 1e-8 for x in (model, base))
    change = p - q
    return (p * (change / q).log1p() - change).sum(-1, keepdim=True).clamp(min=0).float()


def fusion_threshold(score: Tensor) -> Tensor:
    """Median plus 1.5 interquartile ranges; a quantile is the sorted entry at floor(q * (numel - 1)), exactly.

    >>> import torch
    >>> fusion_threshold(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    tensor(5.)
    """
    last = score.numel() - 1
    quartiles = ranked(score.flatten(), *(quarters * last // 4 for quarters in (1, 2, 3)))
    return quartiles[1] + 1.5 * (quartiles[2] - quartiles[0])
