"""SCE, fused: variance, energy and signs in passes over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks, Floats
from ..kernels import jit, jit_sum
from .registry import Results, fused
from .select import EVERYTHING, Selection, between, select

_TILE = 2048


@fused("sce")
def sce(blocks: Blocks, *, select_topk: float = 1.0) -> Results:
    """See :func:`weightops.ops.sce.sce`."""
    chosen = EVERYTHING if select_topk >= 1 else _most_varying(blocks, select_topk)
    energy = np.zeros(blocks.models)
    for _, stack in _chosen(blocks, chosen):
        _add_squares(stack, energy)
    weights = energy / max(energy.sum(), np.finfo(np.float64).tiny)
    for begin, stack in _chosen(blocks, chosen):
        out = np.empty(stack.shape[1], np.float32)
        _merge(stack, weights, out)
        yield begin, out


def _most_varying(blocks: Blocks, share: float) -> Selection:
    varying = sum(int(np.count_nonzero(row)) for row in _variances(blocks))
    wanted = int(varying * share)
    return select(lambda: (row[None] for row in _variances(blocks)), blocks.count, [[wanted]])[0][0]


def _variances(blocks: Blocks) -> Iterator[Floats]:
    for block in blocks:
        yield variance(block.stack)


def variance(stack: Floats) -> Floats:
    """Variance over the models, worked out in fp64 and rounded: [n, m] to [m]."""
    out = np.empty(stack.shape[1], np.float32)
    _variance(stack, out)
    return out


def _chosen(blocks: Blocks, selection: Selection) -> Iterator[tuple[int, Floats]]:
    """One pass: the deltas with zeros where the entry was not selected."""
    left = selection.ties
    for block in blocks:
        stack = block.stack
        if selection is not EVERYTHING:
            score = variance(stack)
            marked = np.empty_like(score)
            left, _ = between(score, selection.threshold, left, 1 << 31, 0, marked)
            stack = _masked(stack, score, marked)
        yield block.begin, stack


def _masked(stack: Floats, score: Floats, marked: Floats) -> Floats:
    """The stack where the score was marked. A score of zero is never wanted, so a marked zero is not told apart."""
    masked: npt.NDArray[np.float32] = np.where(marked != 0, stack, np.float32(0))
    return masked


@jit
def _variance(stack: Any, out: Any) -> None:
    n = stack.shape[0]
    mean, total = np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        m = min(_TILE, len(out) - lo)
        mean[:m] = 0.0
        total[:m] = 0.0
        for i in range(n):
            for j in range(m):
                mean[j] += np.float64(stack[i, lo + j]) - np.float64(stack[0, lo + j])
        for j in range(m):
            mean[j] /= n
        for i in range(n):
            for j in range(m):
                shifted = np.float64(stack[i, lo + j]) - np.float64(stack[0, lo + j]) - mean[j]
                total[j] += shifted * shifted
        for j in range(m):
            out[lo + j] = np.float32(total[j] / n)


@jit_sum
def _add_squares(stack: Any, energy: Any) -> None:
    for i in range(stack.shape[0]):
        total = 0.0
        for j in range(stack.shape[1]):
            total += np.float64(stack[i, j]) * np.float64(stack[i, j])
        energy[i] += total


@jit
def _merge(stack: Any, weights: Any, out: Any) -> None:
    """Weighted mean, in fp64, of what has the sign of the plain sum."""
    zero, one = np.float32(0), np.float32(1)
    elected, summed, shared = np.empty(_TILE, np.float32), np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        m = min(_TILE, len(out) - lo)
        elected[:m] = zero
        summed[:m] = 0.0
        shared[:m] = 0.0
        for i in range(stack.shape[0]):
            for j in range(m):
                elected[j] += stack[i, lo + j]
        for j in range(m):
            elected[j] = one if elected[j] >= zero else -one
        for i in range(stack.shape[0]):
            weight = weights[i]
            for j in range(m):
                value = stack[i, lo + j]
                agrees = value * elected[j] > zero
                summed[j] += weight * np.float64(value) if agrees else 0.0
                shared[j] += weight if agrees else 0.0
        for j in range(m):
            out[lo + j] = np.float32(summed[j] / (shared[j] if shared[j] > 0.0 else 1.0))
