"""SCE in its fused form: variance, energy and signs in passes over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..blocks import Blocks, Floats
from ..kernels import jit, jit_sum
from .forms import Results, fused
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
        out = blocks.scratch("out", stack.shape[1])
        _merge(stack, weights, out)
        yield begin, out


def _most_varying(blocks: Blocks, share: float) -> Selection:
    varying = sum(int(np.count_nonzero(row)) for row in _variances(blocks))
    count = int(varying * share)
    return select(lambda: (row[None] for row in _variances(blocks)), blocks.count, [[count]])[0][0]


def _variances(blocks: Blocks) -> Iterator[Floats]:
    for block in blocks:
        yield variance(block.stack, blocks.scratch("variance", block.length))


def variance(stack: Floats, out: Floats) -> Floats:
    """Variance over the models, computed in fp64 and rounded: [n, m] into out, [m]."""
    _variance(stack, out)
    return out


def _chosen(blocks: Blocks, selection: Selection) -> Iterator[tuple[int, Floats]]:
    """One pass over the deltas, with zeros for entries that are not selected."""
    remaining_ties = selection.ties
    for block in blocks:
        stack = block.stack
        if selection is not EVERYTHING:
            score = variance(stack, blocks.scratch("variance", block.length))
            remaining_ties, _ = between(score, selection.threshold, remaining_ties, 1 << 31, 0, score)
            stack = blocks.scratch("chosen", *stack.shape)
            _mask(block.stack, score, stack)
        yield block.begin, stack


@jit
def _mask(stack: Any, marked: Any, out: Any) -> None:
    """Keep the stack where ``marked`` is not zero. Entries without variance are never selected, so 0 is free."""
    for i in range(stack.shape[0]):
        row, result = stack[i], out[i]
        for j in range(len(marked)):
            result[j] = row[j] if marked[j] != np.float32(0) else np.float32(0)


@jit
def _variance(stack: Any, out: Any) -> None:
    n = stack.shape[0]
    means, totals = np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        result, first = out[lo : lo + _TILE], stack[0, lo : lo + _TILE]
        m = len(result)
        mean, total = means[:m], totals[:m]
        mean[:] = 0.0
        total[:] = 0.0
        for i in range(n):
            row = stack[i, lo : lo + m]
            for j in range(m):
                mean[j] += np.float64(row[j]) - np.float64(first[j])
        for j in range(m):
            mean[j] /= n
        for i in range(n):
            row = stack[i, lo : lo + m]
            for j in range(m):
                shifted = np.float64(row[j]) - np.float64(first[j]) - mean[j]
                total[j] += shifted * shifted
        for j in range(m):
            result[j] = np.float32(total[j] / n)


@jit_sum
def _add_squares(stack: Any, energy: Any) -> None:
    for i in range(stack.shape[0]):
        total = 0.0
        for j in range(stack.shape[1]):
            total += np.float64(stack[i, j]) * np.float64(stack[i, j])
        energy[i] += total


@jit
def _merge(stack: Any, weights: Any, out: Any) -> None:
    """Weighted mean, in fp64, of the entries with the sign of the plain sum."""
    zero, one = np.float32(0), np.float32(1)
    signs, sums, shares = np.empty(_TILE, np.float32), np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        result = out[lo : lo + _TILE]
        m = len(result)
        sign, total, share = signs[:m], sums[:m], shares[:m]
        sign[:] = zero
        total[:] = 0.0
        share[:] = 0.0
        for i in range(stack.shape[0]):
            row = stack[i, lo : lo + m]
            for j in range(m):
                sign[j] += row[j]
        for j in range(m):
            sign[j] = one if sign[j] >= zero else -one
        for i in range(stack.shape[0]):
            weight, row = weights[i], stack[i, lo : lo + m]
            for j in range(m):
                value = np.float64(row[j])
                agrees = row[j] * sign[j] > zero
                total[j] += weight * value if agrees else 0.0
                share[j] += weight if agrees else 0.0
        for j in range(m):
            result[j] = np.float32(total[j] / (share[j] if share[j] > 0.0 else 1.0))
