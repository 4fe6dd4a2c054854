"""Model Breadcrumbs: drop the smallest entries of each task vector, and the very largest.

Source: Davari and Belilovsky 2024, arXiv 2312.06795.
"""

from __future__ import annotations

from typing import Annotated, Any

from .registry import operator
from .signature import PerModel, Range
from .sparsify import Density, kept_count, largest, numbers, same_l1
from .task_arithmetic import weighted_sum
from .ties import agreeing_sum
from .torch_later import Tensor, torch


@operator(reads="tensor", paper="2312.06795", breaks=("identical",))
def breadcrumbs(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    gamma: Annotated[PerModel, Range(0, 1, below_high=True)] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Trim both ends by magnitude, add.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        density: Share of entries of each model to keep; 1 keeps all, the largest too.
        gamma: Share of the largest entries to drop; fewer if the density could not be met otherwise.
        normalize: Divide by the sum of the weights, unless that is zero.
        rescale: Scale each trimmed task vector back to its L1 norm.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> breadcrumbs(torch.tensor([[9.0, 2.0, -3.0, 1.0]]), density=0.5, gamma=0.25)
    tensor([ 0.,  2., -3.,  0.])
    """
    return weighted_sum(keep_middle(deltas, density, gamma, rescale=rescale), weight, normalize, lambda_)


@operator(reads="tensor", paper="2312.06795", breaks=("identical",))
def breadcrumbs_ties(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    gamma: Annotated[PerModel, Range(0, 1, below_high=True)] = 0.01,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Trim both ends by magnitude, add the entries that agree in sign.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        weight: Coefficient of each model.
        density: Share of entries of each model to keep; 1 keeps all, the largest too.
        gamma: Share of the largest entries to drop; fewer if the density could not be met otherwise.
        normalize: Divide by the summed weights of the models that agree.
        rescale: Scale each trimmed task vector back to its L1 norm.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> breadcrumbs_ties(torch.tensor([[2.0, 1.0], [-1.0, 1.0]]))
    tensor([2., 2.])
    """
    return agreeing_sum(keep_middle(deltas, density, gamma, rescale=rescale), weight, normalize, lambda_)


def keep_middle(deltas: Tensor, density: Any, gamma: Any, *, rescale: bool) -> Tensor:
    """Of each task vector, skip the int(gamma * numel) largest entries and keep the next int(density * numel).

    Fewer are skipped where numel is too small for both. Among equals the lower flat index counts as larger (ours).
    """
    shares = zip(numbers(density, len(deltas)), numbers(gamma, len(deltas)), strict=True)
    kept = torch.stack([_middle(delta, d, g) for delta, (d, g) in zip(deltas, shares, strict=True)])
    return same_l1(kept, deltas) if rescale else kept


def _middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    numel = delta.numel()
    count = kept_count(density, numel)
    skipped = min(int(gamma * numel), numel - count)
    magnitude = delta.abs()
    return delta.where(largest(magnitude, skipped + count) & ~largest(magnitude, skipped), 0)
