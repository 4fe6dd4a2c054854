"""The Karcher mean: the point on the sphere closest to all models along it."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from .gram import cosines, gram, mix, norms
from .registry import operator
from .signature import Range
from .sparsify import flat


def karcher_coefficients(gram: Tensor, *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Coefficients of the n models: [n, n] to [n], fp64. Gradient descent within the span of the unit vectors."""
    if len(gram) == 1:
        return torch.ones_like(gram[0])
    lengths = norms(gram)
    present = lengths > tol
    if not present.any():
        return torch.zeros_like(lengths)
    cosine, share = cosines(gram), present.double() / present.sum()
    mean = _start(cosine, share, present, tol)
    for _ in range(max_iter):
        step = _tangent(cosine, share, mean, tol)
        length = _length(cosine, step)
        if length < tol:
            break
        mean = length.cos() * mean + length.sin() / length * step
        mean = mean / _length(cosine, mean)
    return lengths.mean() * mean / torch.where(present, lengths, 1)


def _start(cosine: Tensor, share: Tensor, present: Tensor, tol: float) -> Tensor:
    """The plain mean's direction, or the first vector where the mean vanishes."""
    length = _length(cosine, share)
    if length >= tol:
        return share / length
    first = torch.zeros_like(share)
    first[int(present.int().argmax())] = 1
    return first


def _tangent(cosine: Tensor, share: Tensor, mean: Tensor, tol: float) -> Tensor:
    """The mean of the steps to each vector along the sphere; zero for a vector at or exactly opposite to the mean."""
    height = (cosine @ mean).clamp(-1, 1)
    angle = height.acos()
    way = torch.where((angle >= tol) & (torch.pi - angle >= tol), share * angle / angle.sin(), 0)
    return way - (way @ height) * mean


def _length(cosine: Tensor, point: Tensor) -> Tensor:
    """Length of a combination of the unit vectors."""
    return (point @ cosine @ point).clamp(min=0).sqrt()


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

    >>> karcher(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([2.1213, 2.1213])
    """
    return mix(karcher_coefficients(gram(flat(models)), max_iter=max_iter, tol=tol), models)
