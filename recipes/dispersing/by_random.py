"""At random: the control that no clustering clearly beats (Disperse-then-Merge, arXiv 2405.13432)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightops.recipes.parts.balancing import shared_out
from weightops.recipes.parts.dispersion import Dispersion, Pool


@dataclass(frozen=True)
class ByRandom(Dispersion):
    """At random, in parts of equal size: they differ by at most one row where there are no duplicates."""

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit."""
        return shared_out([len(unit) for unit in pool.units], pool.parts, pool.seed)
