"""LiNeS: scale the task vector linearly with depth.

Source: Wang et al. 2025, arXiv 2410.17146: layer l of L (from 1) is scaled by alpha + beta (l - 1) / (L - 1).
"""

from __future__ import annotations

from typing import Annotated

from ..anatomy.place import Place
from .registry import operator
from .signature import PerModel, Range
from .task_arithmetic import weighted_sum
from .torch_later import Tensor


def lines_scale(place: Place, alpha: float, beta: float) -> float:
    """The factor of a tensor, for the result of any method that takes task vectors.

    Outside the layers, and in a model with one layer, it is alpha (as in the authors' code).

    >>> [lines_scale(Place("w", layer, 3), 0.5, 0.5) for layer in (0, 1, 2, None)]
    [0.5, 0.75, 1.0, 0.5]
    """
    if place.layer is None or place.layers < 2:
        return alpha
    return alpha + beta * place.layer / (place.layers - 1)


@operator(reads="elementwise", paper="2410.17146", breaks=("identical", "one"))
def lines(
    deltas: Tensor,
    *,
    place: Place,
    weight: PerModel = 1.0,
    alpha: Annotated[float, Range(0)] = 0.5,
    beta: float = 0.5,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Add the task vectors, less in the early layers.

    The defaults (ours) leave the last layer unscaled and halve the first.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        place: Layer of the tensor.
        weight: Coefficient of each model.
        alpha: Factor of the first layer, and of tensors outside the layers.
        beta: Added to alpha for the last layer.
        normalize: Divide by the sum of the weights, unless that is zero.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> lines(torch.ones(2, 1), place=Place("w", layer=0, layers=2))
    tensor([1.])
    """
    return weighted_sum(deltas, weight, normalize, lambda_) * lines_scale(place, alpha, beta)
