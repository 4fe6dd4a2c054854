"""RAM: entries that only one model changed are kept, entries that several models changed are averaged.

Source: Reinforced Agent Merging, arXiv 2601.13572.
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import Range
from .sparsify import flat, per_model
from .torch_later import Tensor


@operator(reads="elementwise", paper="2601.13572", breaks=("size",))
def ram(deltas: Tensor, *, epsilon: Annotated[float, Range(0, 1, below_high=True)] = 1e-5) -> Tensor:
    """Average each entry over the models that changed it.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        epsilon: A change counts if its magnitude is larger than this.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> ram(torch.tensor([[1.0, 2.0, 0.0], [0.0, 4.0, 0.0]]))
    tensor([1., 3., 0.])
    """
    changed = deltas.abs() > epsilon
    return deltas.where(changed, 0).sum(0) / changed.sum(0).clamp(min=1)


@operator(reads="tensor", paper="2601.13572", breaks=("size",))
def ramplus_tl(
    deltas: Tensor,
    *,
    r: Annotated[float, Range(0)] = 0.1,
    alpha: Annotated[float, Range(0)] = 0.2,
    epsilon: Annotated[float, Range(0, 1, below_high=True)] = 1e-5,
) -> Tensor:
    """RAM, with the entries that only one model changed scaled up by its share of common changes in the tensor.

    The factor is 1 + r * min(shared / unique, alpha): ``shared`` counts the model's changed entries that others changed
    too, ``unique`` those that only it changed.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        r: Strength of the scaling.
        alpha: Cap on the ratio.
        epsilon: A change counts if its magnitude is larger than this.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> ramplus_tl(torch.tensor([[1.0, 2.0, 0.0], [0.0, 4.0, 0.0]]), r=1.0, alpha=0.5)
    tensor([1.5000, 3.0000, 0.0000])
    """
    changed = deltas.abs() > epsilon
    models = changed.sum(0)
    shared, unique = (flat(changed & mask).sum(1).double() for mask in (models > 1, models == 1))
    factor = per_model(1 + r * (shared / unique.clamp(min=1)).clamp(0, alpha), deltas)
    kept = deltas.where(changed, 0)
    return (kept * factor.where(models == 1, 1)).sum(0) / models.clamp(min=1)
