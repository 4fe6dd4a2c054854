"""By source: a field of the row says where it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightops.errors import WeightopsError
from weightops.recipes.parts.balancing import fewest_first
from weightops.recipes.parts.dispersion import Dispersion, Pool
from weightops.recipes.parts.origins import origins


@dataclass(frozen=True)
class BySource(Dispersion):
    """By the value of a field. Sources stay whole; where there are more sources than parts, larger ones go first.

    Attributes:
        source_field: Field of the row that names its source.
    """

    source_field: str

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit; duplicates in several sources go to the source of the first of them."""
        named = origins(pool.rows, pool.units, self.source_field)
        sizes: dict[str, int] = {}
        for name, unit in zip(named, pool.units, strict=True):
            sizes[name] = sizes.get(name, 0) + len(unit)
        if len(sizes) < pool.parts:
            count = "1 source" if len(sizes) == 1 else f"{len(sizes)} sources"
            raise WeightopsError(f"{self.source_field} names {count} for {pool.parts} parts; ask for fewer parts")
        chosen = dict(zip(sizes, fewest_first([*sizes.values()], pool.parts, range(len(sizes))), strict=True))
        return [chosen[name] for name in named]
