"""By conflicting gradients: MERIT (arXiv 2606.01717, ICML 2026), of which no code is public.

The paper's: at a shared start, estimate a gradient for each data set (task, source or cluster) on a small calibration
sample; take the principal components of these gradients; split along the signs of the first r into K = 2^r parts.

Ours, because the paper's text as we know it does not settle it: the gradients are those of a LoRA adapter at its start,
sketched to ``width`` entries (``parts/group_gradients.py``); each is scaled to length 1, so that a data set with a
large loss does not decide alone; each data set counts once, whatever its size; a score of exactly 0 counts as positive;
a sign pattern that no data set has is an error, not an empty part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Count
from weightops.recipes.parts.clusters import clustered
from weightops.recipes.parts.dispersion import Dispersion, Pool
from weightops.recipes.parts.group_gradients import group_gradients
from weightops.recipes.parts.origins import origins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ByConflict(Dispersion):
    """By the signs of the principal components of the gradients of sources, or of clusters (MERIT).

    Attributes:
        source_field: Field of the row that names its source; without one, k-means clusters of the embeddings.
        clusters: How many clusters, where no field names the source; fewer where there are fewer different rows.
        sample: Rows of each source or cluster whose gradient is taken.
        rank: Of the adapter whose gradients are taken.
        tokens: Longest row of the sample; a longer one is cut at its end.
        width: Entries of a sketched gradient.
    """

    source_field: str | None = None
    clusters: Count = 16
    sample: Count = 32
    rank: Count = 8
    tokens: Count = 1024
    width: Count = 4096

    def needs(self) -> tuple[str, ...]:
        """The base; embeddings only where no field names the source."""
        return ("base",) if self.source_field else ("base", "embed")

    def misfits(self, parts: int) -> Iterator[str]:
        """Signs make powers of two."""
        if parts < 2 or parts & (parts - 1):
            yield f"must be a power of two, because parts are sign patterns; found {parts}"

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit: that of its source or cluster."""
        named = self._groups(pool)
        groups = {
            name: [unit for unit, group in zip(pool.units, named, strict=True) if group == name] for name in named
        }
        if len(groups) < pool.parts:
            count = "1 source or cluster" if len(groups) == 1 else f"{len(groups)} sources or clusters"
            raise WeightopsError(f"{count} for {pool.parts} parts; each part needs one, so ask for fewer parts")
        rows = {name: [pool.rows[row] for unit in units for row in unit] for name, units in groups.items()}
        sketches = group_gradients(
            str(pool.base), rows, sample=self.sample, rank=self.rank, tokens=self.tokens, width=self.width,
            seed=pool.seed,
        )  # fmt: skip
        chosen = dict(zip(groups, sign_patterns(sketches, pool.parts), strict=True))
        for part in range(pool.parts):
            pool.tell(f"part {part}: {', '.join(name for name in groups if chosen[name] == part)}")
        return [chosen[name] for name in named]

    def _groups(self, pool: Pool) -> list[str]:
        if self.source_field:
            return origins(pool.rows, pool.units, self.source_field)
        return [f"cluster {label}" for label in clustered(pool, min(self.clusters, len(pool.units)))]


def sign_patterns(vectors: NDArray[np.float64], parts: int) -> list[int]:
    """The part of each vector: bit j is set where its score on principal component j is negative.

    Vectors are scaled to length 1 and centred. A component points so that the first score that is not 0 is positive:
    which of the two ends of a component it is does not matter, and so the same vectors give the same numbers.

    Args:
        vectors: [groups, width].
        parts: 2^r.

    Raises:
        WeightopsError: vectors that span fewer than r directions, or a sign pattern that none has.
    """
    import numpy as np

    components = parts.bit_length() - 1
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        raise WeightopsError(f"the gradient of group {int(lengths.argmin()) + 1} is zero; nothing is learnt from it")
    scaled = vectors / lengths
    left, values, _ = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
    if (spanned := int((values > 1e-6 * len(vectors) ** 0.5).sum())) < components:
        raise WeightopsError(
            f"the gradients of {len(vectors)} sources or clusters differ in {spanned} directions, {parts} parts need "
            f"{components}; give rows that differ more, or ask for fewer parts"
        )
    scores = left[:, :components] * values[:components]
    clear = np.abs(scores) > 1e-9 * np.abs(scores).max(0)
    scores *= np.sign(scores[clear.argmax(0), range(components)])
    chosen = [sum(int(score < 0) << bit for bit, score in enumerate(row)) for row in scores]
    if len(set(chosen)) < parts:
        raise WeightopsError(
            f"the gradients of {len(vectors)} sources or clusters have only {len(set(chosen))} of {parts} sign "
            "patterns; give more sources or clusters, or ask for fewer parts"
        )
    return chosen
