"""Task arithmetic: add what each model learned."""

from __future__ import annotations

from typing import Any

from .registry import operator
from .signature import PerModel
from .sparsify import numbers, per_model
from .torch_later import Tensor


def task_arithmetic_coefficients(
    count: int, *, weight: Any = 1.0, normalize: bool = False, lambda_: float = 1.0
) -> list[float]:
    """The coefficient of each of ``count`` task vectors, fp64."""
    weights = numbers(weight, count)
    total = sum(weights)
    divisor = total if normalize and abs(total) >= 1e-8 else 1.0
    return [number / divisor * lambda_ for number in weights]


@operator(reads="elementwise", paper="2212.04089", affine=task_arithmetic_coefficients, breaks=("identical",))
def task_arithmetic(deltas: Tensor, *, weight: PerModel = 1.0, normalize: bool = False, lambda_: float = 1.0) -> Tensor:
    """Add the task vectors (Ilharco et al. 2023, arXiv 2212.04089, section 2).

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        normalize: Divide by the sum of the weights, unless that is zero.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> task_arithmetic(torch.tensor([[1.0, 2.0], [3.0, -2.0]]), weight=[1.0, 0.5])
    tensor([2.5000, 1.0000])
    """
    return weighted_sum(deltas, weight, normalize, lambda_)


def weighted_sum(deltas: Tensor, weight: Any, normalize: bool, scale: float) -> Tensor:
    """Sum of weight times delta, divided by the sum of the weights if asked (a sum below 1e-8 counts as zero)."""
    weights = per_model(weight, deltas)
    merged = (weights * deltas).sum(0)
    total = weights.sum()
    if normalize and total.abs() >= 1e-8:
        merged = merged / total
    return merged * scale
