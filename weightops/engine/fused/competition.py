"""PCB-Merging in fused form: two ranks of the magnitudes, one of the scores, then one pass that adds by scores.

Scores are computed in fp64 and rounded to fp32, here and in the reference. The two differ in about one score of 1e8;
then the entry, or those next to the cut, may differ in the last bits or in whether they count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...ops.pcb import CLIPPED
from ..blocks import Block, Blocks, Floats
from ..kernels import jit
from .combine import add_up, vector
from .exponentials import exponentials, tanhs
from .forms import Results, fused
from .ranks import Integers, ranked

_TILE = 2048


@fused("pcb")
def pcb(blocks: Blocks, *, weight: Any = 1.0, pcb_ratio: float = 0.1, lambda_: float = 1.0) -> Results:
    """See :func:`weightops.ops.pcb.pcb`."""
    weights, ends = vector(weight, blocks.models), _ends(blocks)
    cuts = _cuts(blocks, ends, pcb_ratio)
    for block, scores in _scored(blocks, ends):
        out = blocks.scratch("out", block.length)
        _merge(block.stack, scores, ends, cuts, weights, np.float32(lambda_), out)
        yield block.begin, out


def _ends(blocks: Blocks) -> Floats:
    """For each task its smallest magnitude once clipped, and what magnitudes are clipped to, low and high: [n, 3]."""
    few, last = int(CLIPPED * blocks.count), blocks.count - 1
    magnitudes = ranked(
        lambda: (block.stack.view(np.uint32) for block in blocks),
        blocks.count,
        [[0, few, last - few]] * blocks.models,
        bits=31,
    )
    ends = np.array(magnitudes, np.uint32).view(np.float32)
    ends[:, 0] = np.where(ends[:, 0] > 0, ends[:, 1], 0)  # a zero has no sign and stays
    return ends


def _cuts(blocks: Blocks, ends: Floats, share: float) -> Floats:
    """For each task the score at the cut and the largest: [n, 2]."""
    last = blocks.count - 1
    cut = min(int(blocks.count * (1 - share)), last)

    def passes() -> Iterator[Integers]:
        for _, scores in _scored(blocks, ends):
            _ordered(scores.view(np.int32).reshape(-1))
            yield scores.view(np.uint32)

    bits = np.array(ranked(passes, blocks.count, [[cut, last]] * blocks.models, bits=32), np.uint32).view(np.int32)
    return _from_order(bits).view(np.float32)


def _scored(blocks: Blocks, ends: Floats) -> Iterator[tuple[Block, Floats]]:
    """One pass: each block with the scores of its entries, [n, length]."""
    for block in blocks:
        scores = blocks.scratch("scores", *block.stack.shape)
        _score(block.stack, ends, scores)
        yield block, scores


@jit
def _score(stack: Any, ends: Any, scores: Any) -> None:
    n, count = np.float32(len(stack)), stack.shape[1]
    sums, exps, tans, works = np.empty(_TILE, np.float32), np.empty(_TILE), np.empty(_TILE), np.empty(_TILE)
    for lo in range(0, count, _TILE):
        m = min(_TILE, count - lo)
        total, rise, sign, work = sums[:m], exps[:m], tans[:m], works[:m]
        add_up(stack, lo, total)
        for i in range(len(stack)):
            row, score = stack[i, lo : lo + m], scores[i, lo : lo + m]
            least, low, high = ends[i]
            for j in range(m):
                place = _place(_clipped(row[j], low, high), least, high)
                gain = np.float64(n * (place * place))
                rise[j] = gain if gain < 700.0 else 700.0
                sign[j] = np.float64(row[j] * total[j])
            exponentials(rise, work)
            tanhs(sign)
            for j in range(m):
                score[j] = np.float32(rise[j] * sign[j])


@jit
def _clipped(value: Any, low: Any, high: Any) -> Any:
    """The magnitude from ``low`` to ``high``; zero stays zero."""
    magnitude = np.abs(value)
    above = magnitude if magnitude > low else low
    below = above if above < high else high
    return below if magnitude > np.float32(0) else np.float32(0)


@jit
def _place(value: Any, low: Any, high: Any) -> Any:
    """Where a value lies between low, 0, and high, 1; all are 1 if these are equal."""
    return (value - low) / (high - low) if high > low else np.float32(1)


@jit
def _ordered(bits: Any) -> None:
    """Bits of fp32 numbers to integers that, read without a sign, have the numbers' order; in place."""
    for j in range(len(bits)):
        negative = np.int32(bits[j] >> np.int32(31))
        bits[j] = np.int32(bits[j] ^ np.int32(negative | np.int32(-0x80000000)))


def _from_order(integers: Integers) -> Integers:
    """What :func:`_ordered` was given."""
    negative: Integers = ~(integers >> 31)
    return integers ^ (negative | np.int32(-0x80000000))


@jit
def _merge(stack: Any, scores: Any, ends: Any, cuts: Any, weights: Any, scale: Any, out: Any) -> None:
    """Mean of the clipped task vectors, weighted by their scores from the cut to the top."""
    zero, least = np.float32(0), np.float32(1e-12)
    sums = np.empty(_TILE, np.float32)
    for lo in range(0, len(out), _TILE):
        merged = out[lo : lo + _TILE]
        m = len(merged)
        shares = sums[:m]
        merged[:] = zero
        shares[:] = zero
        for i in range(len(weights)):
            row, score = stack[i, lo : lo + m], scores[i, lo : lo + m]
            weight, low, high, cut, top = weights[i], ends[i, 1], ends[i, 2], cuts[i, 0], cuts[i, 1]
            for j in range(m):
                share = _place(score[j] if score[j] > cut else cut, cut, top)
                clipped = _clipped(row[j], low, high)
                merged[j] += share * (clipped if row[j] > zero else -clipped) * weight
                shares[j] += share
        for j in range(m):
            merged[j] = merged[j] / (shares[j] if shares[j] > least else least) * scale
