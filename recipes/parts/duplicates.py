"""Rows that stay together: equal but for case and blanks, or alike by their embeddings.

A duplicate in two parts would teach two sub-models the same row, and would make parts overlap that should not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from weightops.recipes.parts.dispersion import Unit
from weightops.recipes.parts.row_fields import normalised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_COMPARED = 50_000
"""Rows of which every pair is compared by cosine; the time grows with their square."""
_BLOCK = 512


def units(texts: Sequence[str], alike: Iterable[tuple[int, int]] = ()) -> list[Unit]:
    """Rows in groups: those with the same normalised text, and those of each pair; what is linked is one group.

    >>> units(["Yes.", "no", " yes. "])
    [(0, 2), (1,)]
    """
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    pairs = [(first.setdefault(normalised(text), row), row) for row, text in enumerate(texts)]
    for one, other in [*pairs, *alike]:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for row in range(len(texts)):
        members.setdefault(root(row), []).append(row)
    return [tuple(rows) for rows in members.values()]


def alike_links(vectors: NDArray[np.float32], threshold: float) -> list[tuple[int, int]]:
    """Links between rows whose cosine is at least a threshold: at most one from each row, to the first of its group.

    Two rows are in one group where a chain of such pairs leads from the one to the other.

    Args:
        vectors: [rows, width], of length 1.
        threshold: Least cosine.
    """
    import numpy as np

    first = np.arange(len(vectors))  # of each row's group
    for start in range(0, len(vectors), _BLOCK):
        near = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T >= threshold
        for row, alike in enumerate(near, start):
            groups = np.unique(first[:row][alike[:row]])
            if len(groups) > 1:
                first[:row][np.isin(first[:row], groups)] = groups[0]
            if len(groups):
                first[row] = groups[0]
    return [(int(group), row) for row, group in enumerate(first) if group != row]
