"""The last step of the delta methods: add what is kept, all of it or what agrees in sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..blocks import Floats
from ..kernels import jit

_TILE = 2048


def vector(value: Any, count: int) -> Floats:
    """A number for each model: [n], fp32, of one number or of n."""
    return np.broadcast_to(np.asarray(value, np.float32), (count,)).copy()


def weighted_sum(stack: Floats, weight: Any, normalize: bool, scale: float) -> Floats:
    """Sum of weight times delta, divided by the weights' sum if asked and not zero: [n, m] to [m]."""
    weights = vector(weight, len(stack))
    total = weights.sum(dtype=np.float32)
    out = np.empty(stack.shape[1], np.float32)
    _sum(stack, weights, total if normalize and abs(total) >= 1e-8 else np.float32(1), np.float32(scale), out)
    return out


def agreeing_sum(stack: Floats, weight: Any, normalize: bool, scale: float) -> Floats:
    """Sum of the weighted deltas that have the sign of the sum, divided by their weights if asked: [n, m] to [m]."""
    out = np.empty(stack.shape[1], np.float32)
    _agreeing(stack, vector(weight, len(stack)), normalize, np.float32(scale), out)
    return out


@jit
def _sum(stack: Any, weights: Any, total: Any, scale: Any, out: Any) -> None:
    for lo in range(0, len(out), _TILE):
        hi = min(lo + _TILE, len(out))
        out[lo:hi] = 0
        for i in range(len(weights)):
            weight = weights[i]
            for j in range(lo, hi):
                out[j] += weight * stack[i, j]
        for j in range(lo, hi):
            out[j] = out[j] / total * scale


@jit
def _agreeing(stack: Any, weights: Any, normalize: bool, scale: Any, out: Any) -> None:
    elected = np.empty(_TILE, np.float32)
    shared = np.empty(_TILE, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for lo in range(0, len(out), _TILE):
        n = min(_TILE, len(out) - lo)
        elected[:n] = zero
        shared[:n] = zero
        out[lo : lo + n] = zero
        for i in range(len(weights)):
            weight = weights[i]
            for j in range(n):
                elected[j] += weight * stack[i, lo + j]
        for j in range(n):
            elected[j] = one if elected[j] >= zero else -one
        for i in range(len(weights)):
            weight = weights[i]
            for j in range(n):
                value = weight * stack[i, lo + j]
                agrees = value * elected[j] > zero
                out[lo + j] += value if agrees else zero
                shared[j] += weight if agrees else zero
        if normalize:
            for j in range(n):
                out[lo + j] /= shared[j] if shared[j] != zero else one
        for j in range(n):
            out[lo + j] *= scale
