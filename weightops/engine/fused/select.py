"""Exact selection by magnitude for a tensor that is read in blocks: two histograms instead of a sort.

The bits of non-negative fp32 numbers have the same order as the numbers. One pass counts the upper half of the bits, a
second the lower half within the bin that holds the threshold; ties at the threshold are then taken in flat order, lower
first, which is the order of :func:`weightops.ops.sparsify.largest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..blocks import Floats
from ..kernels import jit

_LOW = 15  # lower bits of the 31 that a magnitude has
_HIGH_BINS, _LOW_BINS = 1 << 16, 1 << _LOW

Counts = npt.NDArray[np.unsignedinteger[Any]]


@dataclass
class Selection:
    """The largest entries of one vector: all above a threshold, and the first ``ties`` of those at the threshold.

    Attributes:
        threshold: Bits of the magnitude; 1 << 31 selects nothing.
    """

    threshold: int
    ties: int


NOTHING, EVERYTHING = Selection(1 << 31, 0), Selection(-1, 0)


def select(
    passes: Callable[[], Iterable[Floats]], count: int, wanted: Sequence[Sequence[int]]
) -> list[list[Selection]]:
    """Find the largest entries of each row of a stack.

    Args:
        passes: Starts a pass over the stack's blocks, each [n, length].
        count: Elements of a row.
        wanted: For each row, how many entries to select; several numbers give several selections.
    """
    needed = any(_trivial(number, count) is None for numbers in wanted for number in numbers)
    high = count_high(passes() if needed else (), len(wanted), count)
    return select_in(high, passes(), count, wanted)


def count_high(blocks: Iterable[Floats], rows: int, count: int) -> Counts:
    """The first pass of :func:`select`: for each row a histogram of the upper half of the bits."""
    high = np.zeros((rows, _HIGH_BINS), np.uint32 if count < 1 << 32 else np.uint64)
    for block in blocks:
        for row in range(rows):
            _count_high(block[row], high[row])
    return high


def select_in(
    high: Counts, blocks: Iterable[Floats], count: int, wanted: Sequence[Sequence[int]]
) -> list[list[Selection]]:
    """The second pass of :func:`select`, which counts the lower half of the bits in the bins of the thresholds."""
    selections = [[_trivial(number, count) for number in numbers] for numbers in wanted]
    unknown = [
        (row, k, *_bin_of(high[row], numbers[k]))
        for row, numbers in enumerate(wanted)
        for k in range(len(numbers))
        if selections[row][k] is None
    ]
    low = np.zeros((len(unknown), _LOW_BINS), high.dtype)
    for block in blocks if unknown else ():
        for counts, (row, _, which, _) in zip(low, unknown, strict=True):
            _count_low(block[row], which, counts)
    for counts, (row, k, which, above) in zip(low, unknown, strict=True):
        rest = wanted[row][k] - above
        inner, more = _bin_of(counts, rest)
        selections[row][k] = Selection((which << _LOW) | inner, rest - more)
    return selections  # type: ignore[return-value]


def _trivial(number: int, count: int) -> Selection | None:
    return NOTHING if number <= 0 else EVERYTHING if number >= count else None


def _bin_of(counts: Counts, number: int) -> tuple[int, int]:
    """The bin of the number-th largest entry, and the number of entries in the bins above it."""
    place, above = _from_top(counts, number)
    return int(place), int(above)


@jit
def _from_top(counts: Any, number: int) -> tuple[Any, Any]:
    above = np.int64(0)
    for place in range(len(counts) - 1, 0, -1):
        here = np.int64(counts[place])
        if above + here >= number:
            return place, above
        above += here
    return 0, above


@jit
def _count_high(row: Any, counts: Any) -> None:
    bits = row.view(np.uint32)
    for j in range(len(bits)):
        counts[(bits[j] & np.uint32(0x7FFFFFFF)) >> np.uint32(_LOW)] += np.uint32(1)


@jit
def _count_low(row: Any, which: int, counts: Any) -> None:
    bits = row.view(np.uint32)
    high = np.uint32(which)
    for j in range(len(bits)):
        magnitude = bits[j] & np.uint32(0x7FFFFFFF)
        if magnitude >> np.uint32(_LOW) == high:
            counts[magnitude & np.uint32(_LOW_BINS - 1)] += np.uint32(1)


@jit
def positions_of(row: Any, low: int, ties: int, out: Any) -> tuple[int, int]:
    """Positions of the selected entries of a block, without zeros, into ``out``.

    Args:
        out: [length], int64.

    Returns:
        How many there are, and the number of ties still to take in later blocks.
    """
    bits = row.view(np.uint32)
    found = 0
    for j in range(len(bits)):
        magnitude = np.int64(bits[j] & np.uint32(0x7FFFFFFF))
        tie = magnitude == low and ties > 0
        ties -= tie
        if (magnitude > low or tie) and magnitude > 0:
            out[found] = j
            found += 1
    return found, ties


@jit
def between(row: Any, low: int, low_ties: int, high: int, high_ties: int, out: Any) -> tuple[int, int]:
    """Copy the entries selected by (low, low_ties) but not by (high, high_ties); zeros elsewhere.

    Returns:
        The numbers of ties still to take in later blocks, for both.
    """
    bits = row.view(np.uint32)
    at_low, at_high = 0, 0
    for j in range(len(bits)):
        magnitude = np.int64(bits[j] & np.uint32(0x7FFFFFFF))
        at_low += magnitude == low
        at_high += magnitude == high
    if (low_ties == 0 or at_low <= low_ties) and (high_ties == 0 or at_high <= high_ties):
        # All ties of this block are treated the same, so two comparisons are enough.
        least = low if low_ties and at_low else low + 1
        most = high - 1 if high_ties and at_high else high
        for j in range(len(bits)):
            magnitude = np.int64(bits[j] & np.uint32(0x7FFFFFFF))
            out[j] = row[j] if (magnitude >= least) & (magnitude <= most) else np.float32(0)
        return low_ties - min(low_ties, at_low), high_ties - min(high_ties, at_high)
    for j in range(len(bits)):
        magnitude = np.int64(bits[j] & np.uint32(0x7FFFFFFF))
        first = magnitude == low and low_ties > 0
        low_ties -= first
        top = magnitude == high and high_ties > 0
        high_ties -= top
        chosen = (magnitude > low or first) and not (magnitude > high or top)
        out[j] = row[j] if chosen else np.float32(0)
    return low_ties, high_ties
