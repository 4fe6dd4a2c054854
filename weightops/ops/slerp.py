"""Spherical interpolation of two models (Shoemake 1985), three ways."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np

from ..errors import WeightopsError
from .gram import Doubles, arc, cosines, gram, mix, norms
from .registry import operator
from .signature import PerModel, Range
from .sparsify import flat, numbers
from .torch_later import Tensor, torch


def slerp_coefficients(gram: Doubles, *, t: float) -> Doubles:
    """Coefficients of (base, model): [2, 2] to [2]. Above |cos| 0.9995 the straight line is taken."""
    cosine = cosines(gram)[..., 0, 1]
    return arc(cosine, t, np.abs(cosine) > 0.9995)


@operator(reads="tensor", paper="Shoemake 1985", needs_base=True, models=(1, 1), coefficients=slerp_coefficients)
def slerp(models: Tensor, *, base: Tensor, t: float) -> Tensor:
    """Go a fraction t from the base to the model along the great circle, each tensor as one vector.

    The vectors keep their lengths. A zero vector counts as orthogonal.

    Args:
        models: The one model's weights, [1, ...], fp32 or fp64.
        base: The base model's weights, [...].
        t: 0 is the base, 1 the model.

    Returns:
        [...], the models' dtype.

    >>> slerp(torch.tensor([[0.0, 1.0]]), base=torch.tensor([1.0, 0.0]), t=0.5)
    tensor([0.7071, 0.7071])
    """
    pair = torch.stack([base, models[0]])
    return mix(slerp_coefficients(gram(flat(pair)), t=t), pair)


def nuslerp_coefficients(gram: Doubles, *, weight: Any = 1.0) -> Doubles:
    """Coefficients of the two inputs: [..., 2, 2] to [..., 2]. Parallel or opposite: the straight line."""
    first, second = numbers(weight, 2)
    t = second / (first + second) if abs(first + second) >= 1e-6 else 0.5
    cosine = cosines(gram)[..., 0, 1]
    return arc(cosine, t, 1 - np.square(cosine) <= 1e-12)


@operator(
    reads="tensor",
    paper="mergekit",
    models=(2, 2),
    coefficients=nuslerp_coefficients,
    whole_when={"nuslerp_flatten": True},
)
def nuslerp(
    models: Tensor,
    *,
    base: Tensor | None = None,
    weight: PerModel = 1.0,
    nuslerp_row_wise: bool = False,
    nuslerp_flatten: bool = True,
) -> Tensor:
    """Interpolate two models, or two task vectors if there is a base, along the great circle.

    Args:
        models: Weights, [2, ...], fp32 or fp64.
        base: The base model's weights, [...], or none.
        weight: Weight of each model; the second's share of the sum is t (one half if they sum to zero).
        nuslerp_row_wise: Without flattening, interpolate along the first dimension instead of the last.
        nuslerp_flatten: Take the tensor as one vector; otherwise each of its rows is one.

    Returns:
        [...], the models' dtype.

    >>> nuslerp(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), weight=[1.0, 0.0])
    tensor([1., 0.])
    """
    inputs = models if base is None else models - base
    if nuslerp_flatten or inputs.dim() < 3:
        merged = mix(nuslerp_coefficients(gram(flat(inputs)), weight=weight), inputs)
    else:
        rows = inputs.transpose(1, -1) if nuslerp_row_wise else inputs
        merged = mix(nuslerp_coefficients(gram(rows), weight=weight), rows)
        merged = merged.transpose(0, -1) if nuslerp_row_wise else merged
    return merged if base is None else base + merged


@np.errstate(all="ignore")  # weights that cancel out show in the result
def multislerp_coefficients(
    gram: Doubles, *, weight: Any = 1.0, normalize_weights: bool = True, eps: float = 1e-8
) -> Doubles:
    """Coefficients of the n inputs: [n, n] to [n]."""
    if len(gram) == 1:
        return np.ones_like(gram[0])
    lengths, weights = norms(gram), np.array(numbers(weight, len(gram)))
    if normalize_weights:
        weights = weights / weights.sum()
    mean = weights / (lengths + eps)  # of the unit vectors, in terms of the vectors
    spread = math.sqrt(max(float(mean @ gram @ mean), 0.0))
    if spread >= eps:
        return mean / spread * float(weights @ lengths)
    if len(gram) > 2 and lengths.any():
        raise WeightopsError("multislerp: the models' directions cancel out; take other weights")
    return weights


@operator(
    reads="tensor",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    coefficients=multislerp_coefficients,
)
def multislerp(
    models: Tensor,
    *,
    base: Tensor | None = None,
    weight: PerModel = 1.0,
    normalize_weights: bool = True,
    eps: Annotated[float, Range(0, above_low=True)] = 1e-8,
) -> Tensor:
    """Average any number of models, or task vectors if there is a base, on the sphere.

    The mean direction of the unit vectors, times the mean length. (The published text then takes a step in the tangent
    space at that direction; with the same weights in both places the step is zero.)

    Args:
        models: Weights, [n, ...], fp32 or fp64.
        base: The base model's weights, [...], or none.
        weight: Weight of each model.
        normalize_weights: Divide by the sum of the weights.
        eps: Added to the lengths; where the mean of the unit vectors is shorter, two models are averaged instead.

    Returns:
        [...], the models' dtype.

    Raises:
        WeightopsError: three or more directions cancel out.

    >>> multislerp(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor([1.4142, 1.4142])
    """
    inputs = models if base is None else models - base
    chosen = multislerp_coefficients(gram(flat(inputs)), weight=weight, normalize_weights=normalize_weights, eps=eps)
    merged = mix(chosen, inputs)
    return merged if base is None else base + merged
