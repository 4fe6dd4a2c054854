"""TIES: trim, elect a sign, average what agrees.

Source: Yadav et al. 2023, arXiv 2306.01708, section 3.
"""

from __future__ import annotations

from typing import Any

from .registry import operator
from .signature import PerModel
from .sparsify import Density, keep_largest, per_model, same_l1
from .torch_later import Tensor


@operator(reads="tensor", paper="2306.01708")
def ties(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Merge task vectors by majority sign.

    The largest int(density * numel) entries of each model stay, at least one; among equals the lower flat index (ours).

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        density: Share of entries of each model to keep.
        normalize: Divide by the summed weights of the models that agree.
        rescale: Scale each trimmed task vector back to its L1 norm.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> ties(torch.tensor([[1.0, -2.0, 0.1], [2.0, 1.0, 0.2]]), density=0.67)
    tensor([ 1.5000, -2.0000,  0.0000])
    """
    kept = keep_largest(deltas, density)
    if rescale:
        kept = same_l1(kept, deltas)
    return agreeing_sum(kept, weight, normalize, lambda_)


def agreeing_sum(deltas: Tensor, weight: Any, normalize: bool, scale: float) -> Tensor:
    """Sum of the weighted deltas that agree; ``normalize`` divides by their summed weights, unless those are zero."""
    weights = per_model(weight, deltas)
    weighted = weights * deltas
    agrees = agreement(weighted)
    merged = weighted.where(agrees, 0).sum(0)
    if normalize:
        total = (weights * agrees).sum(0)
        merged = merged / total.where(total != 0, 1)
    return merged * scale


def agreement(deltas: Tensor) -> Tensor:
    """Mark, at each entry, the deltas that have the sign of their sum; a sum of zero elects plus, a zero never agrees.

    >>> import torch
    >>> agreement(torch.tensor([[1.0, 0.0], [-1.0, -2.0]]))
    tensor([[ True, False],
            [False,  True]])
    """
    positive = deltas.sum(0) >= 0
    return ((deltas > 0) & positive) | ((deltas < 0) & ~positive)
