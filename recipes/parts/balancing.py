"""Units shared out over parts whose sizes are as equal as duplicates allow."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from weightops.recipes.parts.dispersion import Unit


def shared_out(sizes: Sequence[int], parts: int, seed: int) -> list[int]:
    """The part of each unit, drawn by the seed: larger units first, each to the part with the fewest rows.

    Where no unit has more than one row, sizes differ by at most one.

    >>> sorted(shared_out([1] * 5, 2, seed=0))
    [0, 0, 0, 1, 1]
    """
    order = list(range(len(sizes)))
    random.Random(f"{seed}/parts").shuffle(order)
    return fewest_first(sizes, parts, order)


def fewest_first(sizes: Sequence[int], parts: int, order: Sequence[int]) -> list[int]:
    """The part of each unit: larger ones first (of equal ones the first in ``order``), each where the fewest rows are.

    >>> fewest_first([1, 3, 1, 1], 2, range(4))
    [1, 0, 1, 1]
    """
    chosen = [0] * len(sizes)
    filled = [(0, part) for part in range(parts)]  # a heap: rows, part
    for unit in sorted(order, key=lambda unit: -sizes[unit]):
        rows, part = filled[0]
        chosen[unit] = part
        heapq.heapreplace(filled, (rows + sizes[unit], part))
    return chosen


def cut(units: Sequence[Unit], order: Sequence[int], parts: int) -> list[int]:
    """The part of each unit: the order cut into runs of about equal numbers of rows, none of them empty.

    >>> cut([(0,), (1,), (2,), (3,), (4,)], [4, 3, 2, 1, 0], 2)
    [1, 1, 0, 0, 0]
    """
    chosen = [0] * len(units)
    left = sum(map(len, units))
    at = 0
    for part in range(parts):
        wanted, taken, later = left / (parts - part), 0, parts - part - 1
        while at < len(order) - later and (not taken or taken + len(units[order[at]]) / 2 <= wanted):
            chosen[order[at]] = part
            taken += len(units[order[at]])
            at += 1
        left -= taken
    for unit in order[at:]:
        chosen[unit] = parts - 1
    return chosen
