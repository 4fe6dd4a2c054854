"""By length: the shortest rows in part 0, the longest in the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightops.recipes.parts.balancing import cut
from weightops.recipes.parts.dispersion import Dispersion, Pool


@dataclass(frozen=True)
class ByLength(Dispersion):
    """By the characters of the text, the shortest in part 0, in parts of about equally many rows."""

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit; duplicates go where the first of them belongs."""
        order = sorted(range(len(pool.units)), key=lambda unit: (len(pool.texts[pool.units[unit][0]]), unit))
        return cut(pool.units, order, pool.parts)
