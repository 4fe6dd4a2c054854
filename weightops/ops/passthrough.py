"""One model, copied."""

from __future__ import annotations

from typing import Any

from .registry import operator
from .signature import PerModel
from .sparsify import numbers, per_model
from .torch_later import Tensor


def passthrough_coefficients(count: int, *, scale: Any = 1.0) -> list[float]:
    """The factor of the one model, fp64."""
    return numbers(scale, count)


@operator(reads="elementwise", paper="mergekit", models=(1, 1), affine=passthrough_coefficients)
def passthrough(models: Tensor, *, scale: PerModel = 1.0) -> Tensor:
    """Copy one model's tensor, scaled if asked.

    Args:
        models: The one model's weights, [1, ...], fp32 or fp64.
        scale: Factor; 1 copies every bit.

    Returns:
        [...], the model's dtype.

    >>> import torch
    >>> passthrough(torch.tensor([[1.0, 2.0]]), scale=0.5)
    tensor([0.5000, 1.0000])
    """
    return (models * per_model(scale, models))[0]
