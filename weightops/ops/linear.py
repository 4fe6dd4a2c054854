"""Weighted average of the weights themselves."""

from __future__ import annotations

from typing import Any

from ..errors import WeightopsError
from .registry import operator
from .signature import PerModel
from .sparsify import numbers, per_model
from .torch_later import Tensor

CANCELLED = "the weights sum to 0 and cannot be normalised; change them or set normalize: false"


def linear_coefficients(count: int, *, weight: Any = 1.0, normalize: bool = True) -> list[float]:
    """The coefficient of each of ``count`` models, fp64.

    Raises:
        WeightopsError: ``normalize`` with weights that sum to zero.
    """
    weights = numbers(weight, count)
    total = sum(weights)
    if not normalize:
        return weights
    if total == 0:
        raise WeightopsError(CANCELLED)
    return [number / total for number in weights]


@operator(reads="elementwise", paper="2203.05482", affine=linear_coefficients)
def linear(models: Tensor, *, weight: PerModel = 1.0, normalize: bool = True) -> Tensor:
    """Average the models (model soups: Wortsman et al. 2022, arXiv 2203.05482, section 2).

    Args:
        models: Weights, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        normalize: Divide by the sum of the weights.

    Returns:
        The weighted average, [...], the models' dtype.

    Raises:
        WeightopsError: ``normalize`` with weights that sum to zero.

    >>> import torch
    >>> linear(torch.tensor([[0.0, 4.0], [4.0, 8.0]]), weight=[1.0, 3.0])
    tensor([3., 7.])
    """
    coefficient = per_model(weight, models)
    total = (coefficient * models).sum(0)
    if not normalize:
        return total
    if coefficient.sum() == 0:
        raise WeightopsError(CANCELLED)
    return total / coefficient.sum()
