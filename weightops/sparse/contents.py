"""What a sparse delta holds, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum, sqrt

import numpy as np

from ..anatomy.groups import GROUPS, group_of
from ..engine import kernels
from ..io.sparse_delta import SparseDelta, SparseTensor
from .delta_file import load_entries


@dataclass(frozen=True)
class SparsePart:
    """One part of the model.

    Attributes:
        part: One of :data:`weightops.anatomy.groups.GROUPS`.
        tensors: How many the delta changes.
        elements: Elements of those tensors.
        entries: How many of them it changes.
        norm: Euclidean norm of the change; ``None`` if it cannot be told without the base.
    """

    part: str
    tensors: int
    elements: int
    entries: int
    norm: float | None

    @property
    def density(self) -> float:
        return self.entries / self.elements


def contents(delta: SparseDelta) -> tuple[SparsePart, ...]:
    """One row for each part; values are read, one tensor at a time.

    Raises:
        WeightopsError: the file has changed since it was opened.
    """
    replaces = delta.about.semantics == "replace"
    parts = []
    for part in GROUPS:
        tensors = [tensor for name, tensor in sorted(delta.tensors.items()) if group_of(name) == part]
        if tensors:
            squares = [_squared_norm(tensor, replaces=replaces) for tensor in tensors]
            known = [square for square in squares if square is not None]
            norm = sqrt(fsum(known)) if len(known) == len(squares) else None
            counts = sum(tensor.count for tensor in tensors), sum(tensor.entries for tensor in tensors)
            parts.append(SparsePart(part, len(tensors), *counts, norm))
    return tuple(parts)


def _squared_norm(tensor: SparseTensor, *, replaces: bool) -> float | None:
    """The squared norm of what the delta adds; ``None`` of replacing entries without those that they replace."""
    entries = load_entries(tensor)
    if replaces and (entries.originals is None or entries.dtype not in kernels.CODES):
        return None
    change = kernels.widen(entries.values, entries.values_dtype).astype(np.float64)
    if replaces and entries.originals is not None:
        change = change - kernels.widen(entries.originals, entries.dtype).astype(np.float64)
    return float(np.square(change).sum())
