"""The Karcher mean: the point on the sphere closest to all models along it."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt

from .gram import Doubles, cosines, gram, mix, norms
from .registry import operator
from .signature import Range
from .sparsify import flat
from .torch_later import Tensor


def karcher_coefficients(gram: Doubles, *, max_iter: int = 10, tol: float = 1e-5) -> Doubles:
    """Coefficients of the n models: [n, n] to [n]. Gradient descent within the span of the unit vectors."""
    if len(gram) == 1:
        return np.ones_like(gram[0])
    lengths = norms(gram)
    present = lengths > tol
    if not present.any():
        return np.zeros_like(lengths)
    cosine, share = cosines(gram), present / present.sum()
    mean = _start(cosine, share, present, tol)
    for _ in range(max_iter):
        step = _tangent(cosine, share, mean, tol)
        length = _length(cosine, step)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean = mean / _length(cosine, mean)
    coefficients: Doubles = lengths.mean() * mean / np.where(present, lengths, 1)
    return coefficients


def _start(cosine: Doubles, share: Doubles, present: npt.NDArray[np.bool_], tol: float) -> Doubles:
    """The plain mean's direction, or the first vector where the mean vanishes."""
    length = _length(cosine, share)
    if length >= tol:
        return share / length
    first = np.zeros_like(share)
    first[present.argmax()] = 1
    return first


def _tangent(cosine: Doubles, share: Doubles, mean: Doubles, tol: float) -> Doubles:
    """The mean of the steps to each vector along the sphere; zero for a vector at or exactly opposite to the mean."""
    height = np.clip(cosine @ mean, -1, 1)
    angle = np.arccos(height)
    inside = (angle >= tol) & (np.pi - angle >= tol)
    way = np.divide(share * angle, np.sin(angle), out=np.zeros_like(angle), where=inside)
    step: Doubles = way - (way @ height) * mean
    return step


def _length(cosine: Doubles, point: Doubles) -> float:
    """Length of a combination of the unit vectors."""
    return math.sqrt(max(float(point @ cosine @ point), 0.0))


@operator(reads="tensor", paper="2603.04972", coefficients=karcher_coefficients)
def karcher(
    models: Tensor, *, max_iter: Annotated[int, Range(1)] = 10, tol: Annotated[float, Range(0, above_low=True)] = 1e-5
) -> Tensor:
    """Average the models' directions along the sphere, with equal weights, and give the result their mean length.

    Args:
        models: Weights, [n, ...], fp32 or fp64, each as one vector.
        max_iter: Most steps of the descent.
        tol: The descent ends at a step shorter than this (radians); a model shorter than this has no direction.

    Returns:
        [...], the models' dtype; zero where every model is shorter than ``tol``.

    >>> import torch
    >>> karcher(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([2.1213, 2.1213])
    """
    return mix(karcher_coefficients(gram(flat(models)), max_iter=max_iter, tol=tol), models)
