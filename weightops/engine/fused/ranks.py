"""Exact entries at some ranks of integers that are read in blocks: their bits are found digit by digit.

The bits of non-negative floating-point numbers are integers of the same order. Each pass counts the next digit of the
integers that agree with an entry in the digits known so far. Once few integers agree, the next pass collects them. So
the memory is the same for any numbers, and a small tensor takes one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import jit

Integers = npt.NDArray[np.integer[Any]]

_DIGIT = 16  # bits that a pass finds
_FEW = 1 << 19  # integers that are collected at most, of all rows together


def ranked(
    passes: Callable[[], Iterable[Integers]],
    count: int,
    ranks: Sequence[Sequence[int]],
    *,
    bits: int = 63,
    least: int = 1,
) -> list[list[int]]:
    """The entries at some ranks of each row, counted from 0 for the smallest.

    Args:
        passes: Starts a pass over the rows' blocks, each [rows, length], of any type of integer.
        count: Elements of a row.
        ranks: For each row, numbers from 0 to ``count - 1``.
        bits: How many of an integer's last bits count; those above, such as the sign of a float, are left out.
        least: No integer but 0 is smaller than this; where many are 0, a large number saves passes.
    """
    entries = [_Entry(row, rank) for row, wanted in enumerate(ranks) for rank in wanted]
    unknown, alike = bits, {entry.begins: count for entry in entries}
    while unknown and sum(alike.values()) > _FEW:
        width = min(_DIGIT, unknown)
        unknown -= width
        histograms = _histograms(passes(), alike, bits, unknown, width)
        alike = {}
        for entry in entries:
            if entry.begins in histograms:
                size = entry.add_digit(histograms[entry.begins], width)
                if entry.start or least < 1 << unknown:  # else it is 0
                    alike[entry.begins] = size
    collected = _collected(passes(), alike, bits, unknown) if unknown and alike else {}
    values = [
        int(np.partition(collected[entry.begins], entry.rank)[entry.rank])
        if entry.begins in collected
        else entry.start << unknown
        for entry in entries
    ]
    return [[value for value, entry in zip(values, entries, strict=True) if entry.row == r] for r in range(len(ranks))]


class _Entry:
    """An entry to find: the start of its bits, and its rank among the integers of its row that begin with it."""

    def __init__(self, row: int, rank: int) -> None:
        self.row, self.rank, self.start = row, rank, 0

    @property
    def begins(self) -> tuple[int, int]:
        """Row and start of the bits."""
        return self.row, self.start

    def add_digit(self, counts: Integers, width: int) -> int:
        """Find the next digit; returns the number of integers that agree with the entry in it too."""
        ends = counts.cumsum()
        digit = int(ends.searchsorted(self.rank, "right"))
        self.rank -= int(ends[digit] - counts[digit])
        self.start = self.start << width | digit
        return int(counts[digit])


def _histograms(
    blocks: Iterable[Integers], alike: Iterable[tuple[int, int]], bits: int, unknown: int, width: int
) -> dict[tuple[int, int], Integers]:
    """For each row and start of the bits, how often each next digit follows it."""
    histograms: dict[tuple[int, int], Integers] = {begins: np.zeros(1 << width, np.int64) for begins in alike}
    for block in blocks:
        for (row, start), counts in histograms.items():
            _count(block[row], (1 << bits) - 1, start, unknown, width, counts)
    return histograms


def _collected(
    blocks: Iterable[Integers], alike: Mapping[tuple[int, int], int], bits: int, unknown: int
) -> dict[tuple[int, int], Integers]:
    """For each row and start of the bits, the integers that begin with it."""
    collected: dict[tuple[int, int], Integers] = {begins: np.empty(size, np.int64) for begins, size in alike.items()}
    filled = dict.fromkeys(alike, 0)
    for block in blocks:
        for (row, start), integers in collected.items():
            filled[row, start] = _gather(block[row], (1 << bits) - 1, start, unknown, integers, filled[row, start])
    return collected


@jit
def _count(row: Any, mask: int, start: int, unknown: int, width: int, counts: Any) -> None:
    for j in range(len(row)):
        known = (np.int64(row[j]) & mask) >> unknown
        if known >> width == start:
            counts[known & ((1 << width) - 1)] += 1


@jit
def _gather(row: Any, mask: int, start: int, unknown: int, integers: Any, filled: int) -> int:
    for j in range(len(row)):
        integer = np.int64(row[j]) & mask
        if integer >> unknown == start:
            integers[filled] = integer
            filled += 1
    return filled
