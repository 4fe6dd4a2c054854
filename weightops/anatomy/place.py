"""Where a tensor stands in a model: what layer-wise methods look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A tensor's name, and its layer of how many (``None`` outside the layers)."""

    name: str
    layer: int | None = None
    layers: int = 0
