"""Arcee Fusion in fused form: the divergence of each row once, then passes over the importance of each entry.

Exponentials and logarithms are fp64 polynomials in plain loops, which the compiler vectorises. A row's divergence
differs from the reference's by about 1e-14 of it before both round it to fp32, so nearly always not at all; then the
result is the reference's bit for bit. Where a divergence falls on the next fp32 number, entries whose importance lies
within 2e-7 of the threshold, relatively, may come from the other model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..blocks import Block, Blocks, Floats
from ..kernels import jit, jit_sum
from .combine import Doubles
from .exponentials import exponentials
from .forms import Results, fused
from .ranks import ranked

_LEAST = 1e-8  # added to every probability
_LEAST_SCORE = 1 << 52  # bits of the smallest normal number; a product of two fp32 numbers is not smaller
_NEAR = 1 / 16  # the largest |p - q| / (p + q) for which the series has all bits


@fused("arcee_fusion", rows=True)
def arcee_fusion(blocks: Blocks) -> Results:
    """See :func:`weightops.ops.arcee_fusion.arcee_fusion`."""
    importance = _Importance(blocks)
    threshold = _threshold(importance, blocks.count)
    for block, scores in importance:
        out = blocks.scratch("out", block.length)
        _take(scores, threshold, block.stack[0], block.base, out)
        yield block.begin, out


def _threshold(importance: _Importance, count: int) -> float:
    """See :func:`weightops.ops.arcee_fusion.fusion_threshold`."""
    quartiles = [quarters * (count - 1) // 4 for quarters in (1, 2, 3)]
    scores = ranked(
        lambda: (scores.view(np.int64)[None] for _, scores in importance), count, [quartiles], least=_LEAST_SCORE
    )
    low, median, high = np.array(scores[0], np.int64).view(np.float64)
    return float(median + 1.5 * (high - low))


class _Importance:
    """The importance of every entry; iterate for a pass over the blocks. The first computes the rows' divergences."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks, self._passed = blocks, False
        self._divergences: Floats = np.empty(blocks.count // blocks.row, np.float32)

    def __iter__(self) -> Iterator[tuple[Block, Doubles]]:
        row = self._blocks.row
        work = self._blocks.scratch("exponentials", 6 * row).view(np.float64).reshape(3, row)
        for block in self._blocks:
            rows = self._divergences[block.begin // row : (block.begin + block.length) // row]
            if not self._passed:
                _divergences(block.stack[0], block.base, work, rows)
            scores = self._blocks.scratch("scores", 2 * block.length).view(np.float64)
            _score(block.stack[0], block.base, rows, scores)
            yield block, scores
        self._passed = True


@jit
def _score(model: Any, base: Any, divergences: Any, scores: Any) -> None:
    row = len(scores) // len(divergences)
    for r in range(len(divergences)):
        divergence, lo, hi = np.float64(divergences[r]), r * row, (r + 1) * row
        tuned, original, score = model[lo:hi], base[lo:hi], scores[lo:hi]
        for j in range(row):
            score[j] = np.abs(np.float64(tuned[j]) - np.float64(original[j])) * divergence


@jit
def _take(scores: Any, threshold: float, model: Any, base: Any, out: Any) -> None:
    for j in range(len(out)):
        out[j] = model[j] if scores[j] >= threshold else base[j]


@jit
def _divergences(model: Any, base: Any, work: Any, divergences: Any) -> None:
    """The divergence of each row, rounded to fp32; ``work``: [3, row], fp64."""
    row = work.shape[1]
    for r in range(len(divergences)):
        _probabilities(model[r * row : (r + 1) * row], work[0], work[2])
        _probabilities(base[r * row : (r + 1) * row], work[1], work[2])
        divergences[r] = np.float32(_divergence(work[0], work[1]))


@jit
def _probabilities(row: Any, p: Any, work: Any) -> None:
    """The softmax of a row, plus what keeps it from zero."""
    largest = np.float64(_largest(row))
    for j in range(len(row)):
        p[j] = np.float64(row[j]) - largest
    exponentials(p, work)
    factor = 1 / _sum(p)
    for j in range(len(row)):
        p[j] = p[j] * factor + _LEAST


@jit
def _largest(row: Any) -> Any:
    """The largest number of a row, by integers of the same order: unlike a maximum of floats, this is vectorised."""
    bits, largest = row.view(np.int32), np.empty(1, np.int32)
    top = np.int32(-(1 << 31))
    for j in range(len(bits)):
        negative = np.int32(bits[j] >> np.int32(31))
        top = max(top, np.int32(bits[j] ^ np.int32(negative & np.int32(0x7FFFFFFF))))
    largest[0] = np.int32(top ^ np.int32(np.int32(top >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return largest.view(np.float32)[0]


@jit_sum
def _sum(p: Any) -> float:
    total = 0.0
    for j in range(len(p)):
        total += p[j]
    return total


@jit
def _divergence(p: Any, q: Any) -> float:
    """Sum of p log(p / q) - (p - q), no term of which is negative."""
    far = 0
    for j in range(len(p)):
        far += np.abs(p[j] - q[j]) > _NEAR * (p[j] + q[j])
    return _near_divergence(p, q) if far == 0 else max(_far_divergence(p, q), 0.0)


@jit_sum
def _near_divergence(p: Any, q: Any) -> float:
    """With s = (p - q) / (p + q), log(p / q) is 2 (s + s^3 / 3 + s^5 / 5 + ...); the terms in s cancel in advance."""
    total = 0.0
    for j in range(len(p)):
        both = p[j] + q[j]
        s = (p[j] - q[j]) / both
        z = s * s
        series = (((((z * (1 / 15) + 1 / 13) * z + 1 / 11) * z + 1 / 9) * z + 1 / 7) * z + 1 / 5) * z + 1 / 3
        total += both * z * (1 + (1 + s) * s * series)
    return total


@jit_sum
def _far_divergence(p: Any, q: Any) -> float:
    total = 0.0
    for j in range(len(p)):
        change = p[j] - q[j]
        total += p[j] * np.log1p(change / q[j]) - change
    return total
