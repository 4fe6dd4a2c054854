"""By k-means over embeddings of length 1 (Disperse-then-Merge, arXiv 2405.13432; its code embeds the answer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightops.recipes.parts.clusters import clustered
from weightops.recipes.parts.dispersion import Dispersion, Pool


@dataclass(frozen=True)
class ByKmeans(Dispersion):
    """By k-means over the embeddings; part 0 is the largest.

    Attributes:
        balanced: Parts of equal size: they differ by at most one row where there are no duplicates. From plain k-means,
            rows go to the nearest part that has room and then change places while that brings them nearer.
    """

    balanced: bool = False

    def needs(self) -> tuple[str, ...]:
        """Embeddings."""
        return ("embed",)

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit."""
        return clustered(pool, pool.parts, self.balanced)
