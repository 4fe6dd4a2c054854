"""SCE in its fused form: spread, energy and signs in passes over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..blocks import Block, Blocks, Floats
from ..kernels import jit, jit_sum
from .forms import Results, fused
from .select import EVERYTHING, Selection, between, count_high, select_in

_TILE = 2048


@fused("sce")
def sce(blocks: Blocks, *, select_topk: float = 1.0) -> Results:
    """See :func:`weightops.ops.sce.sce`."""
    selection = EVERYTHING if select_topk >= 1 else _most_varying(blocks, select_topk)
    energy = np.zeros(blocks.models)
    for block, marked in _marked(blocks, selection):
        _add_squares(block.stack, marked, energy)
    weights = energy / max(energy.sum(), np.finfo(np.float64).tiny)
    for block, marked in _marked(blocks, selection):
        out = blocks.scratch("out", block.length)
        _merge(block.stack, marked, weights, out)
        yield block.begin, out


def _most_varying(blocks: Blocks, share: float) -> Selection:
    varying = 0

    def counted() -> Iterator[Floats]:
        nonlocal varying
        for row in _spreads(blocks):
            varying += _count_nonzero(row)
            yield row[None]

    high = count_high(counted(), 1, blocks.count)
    return select_in(high, (row[None] for row in _spreads(blocks)), blocks.count, [[int(varying * share)]])[0][0]


def _spreads(blocks: Blocks) -> Iterator[Floats]:
    for block in blocks:
        yield spread(block.stack, blocks.scratch("spread", block.length))


def spread(stack: Floats, out: Floats) -> Floats:
    """See :func:`weightops.ops.sce.spread`: [n, m] into out, [m]."""
    _spread(stack, out)
    return out


def _marked(blocks: Blocks, selection: Selection) -> Iterator[tuple[Block, Floats]]:
    """One pass: each block, and an array that is zero where its entries are not selected, [length]."""
    remaining_ties = selection.ties
    for block in blocks:
        marked = blocks.scratch("spread", block.length)
        if selection is EVERYTHING:
            marked[:] = 1
        else:  # entries without variance are never selected
            spread(block.stack, marked)
            remaining_ties, _ = between(marked, selection.threshold, remaining_ties, 1 << 31, 0, marked)
        yield block, marked


@jit
def _count_nonzero(row: Any) -> int:
    total = 0
    for j in range(len(row)):
        total += row[j] != np.float32(0)
    return total


@jit
def _spread(stack: Any, out: Any) -> None:
    n = stack.shape[0]
    sums, squares = np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        result, first = out[lo : lo + _TILE], stack[0, lo : lo + _TILE]
        m = len(result)
        total, square = sums[:m], squares[:m]
        total[:] = 0.0
        square[:] = 0.0
        for i in range(1, n):
            row = stack[i, lo : lo + m]
            for j in range(m):
                shifted = np.float64(row[j]) - np.float64(first[j])
                total[j] += shifted
                square[j] += shifted * shifted
        for j in range(m):
            result[j] = np.float32(n * square[j] - total[j] * total[j])


@jit_sum
def _add_squares(stack: Any, marked: Any, energy: Any) -> None:
    for i in range(stack.shape[0]):
        row, total = stack[i], 0.0
        for j in range(len(marked)):
            value = np.float64(row[j] if marked[j] != np.float32(0) else np.float32(0))
            total += value * value
        energy[i] += total


@jit
def _merge(stack: Any, marked: Any, weights: Any, out: Any) -> None:
    """Weighted mean, in fp64, of the marked entries with the sign of the plain sum; zero for the others."""
    zero, one = np.float32(0), np.float32(1)
    signs, sums, shares = np.empty(_TILE, np.float32), np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        result, chosen = out[lo : lo + _TILE], marked[lo : lo + _TILE]
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
            merged = np.float32(total[j] / (share[j] if share[j] > 0.0 else 1.0))
            result[j] = merged if chosen[j] != zero else zero
