"""SCE in its fused form: spread, energy and signs in passes over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..blocks import Block, Blocks, Floats
from ..kernels import jit, jit_sum
from .combine import add_up
from .forms import Results, fused
from .select import EVERYTHING, Selection, between, count_high, select_in

_TILE = 1024  # two fp64 tiles of this length stay in the first-level cache


@fused("sce")
def sce(blocks: Blocks, *, select_topk: float = 1.0) -> Results:
    """See :func:`weightops.ops.sce.sce`."""
    selection = EVERYTHING if select_topk >= 1 else _most_varying(blocks, select_topk)
    energy = np.zeros(blocks.models)
    for block in _chosen(blocks, selection):
        _add_squares(block.stack, energy)
    weights = energy / max(energy.sum(), np.finfo(np.float64).tiny)
    for block in blocks if blocks.kept else _chosen(blocks, selection):  # kept blocks hold what the last pass left
        out = blocks.scratch("out", block.length)
        _merge(block.stack, weights, out)
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


def _chosen(blocks: Blocks, selection: Selection) -> Iterator[Block]:
    """One pass: each block with zeros in place of the entries that are not selected."""
    remaining_ties = selection.ties
    for block in blocks:
        if selection is not EVERYTHING:  # entries without variance are never selected
            marked = spread(block.stack, blocks.scratch("spread", block.length))
            remaining_ties, _ = between(marked, selection.threshold, remaining_ties, 1 << 31, 0, marked)
            _drop_unmarked(block.stack, marked)
        yield block


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
        if n == 2:  # 2 * square - total * total is just the square, bit for bit
            second = stack[1, lo : lo + m]
            for j in range(m):
                shifted = np.float64(second[j]) - np.float64(first[j])
                result[j] = np.float32(shifted * shifted)
            continue
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


@jit
def _drop_unmarked(stack: Any, marked: Any) -> None:
    zero = np.float32(0)
    for i in range(stack.shape[0]):
        row = stack[i]
        for j in range(len(marked)):
            row[j] = row[j] if marked[j] != zero else zero


@jit_sum
def _add_squares(stack: Any, energy: Any) -> None:
    for i in range(stack.shape[0]):
        row, total = stack[i], 0.0
        for j in range(len(row)):
            total += np.float64(row[j]) * np.float64(row[j])
        energy[i] += total


@jit
def _merge(stack: Any, weights: Any, out: Any) -> None:
    """Weighted mean, in fp64, of the entries with the sign of the plain sum; zero where no entry is left."""
    zero, one = np.float32(0), np.float32(1)
    signs, sums, shares = np.empty(_TILE, np.float32), np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, len(out), _TILE):
        result = out[lo : lo + _TILE]
        m = len(result)
        sign, total, share = signs[:m], sums[:m], shares[:m]
        total[:] = 0.0
        share[:] = 0.0
        add_up(stack, lo, sign)
        for j in range(m):
            sign[j] = one if sign[j] >= zero else -one
        for i in range(stack.shape[0]):
            weight, row = weights[i], stack[i, lo : lo + m]
            for j in range(m):
                agrees = row[j] * sign[j] > zero
                total[j] += weight * np.float64(row[j]) if agrees else 0.0
                share[j] += weight if agrees else 0.0
        for j in range(m):
            result[j] = np.float32(total[j] / (share[j] if share[j] > 0.0 else 1.0))
