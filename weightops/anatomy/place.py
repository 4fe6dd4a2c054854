"""The place of a tensor in its model, for merge methods that treat layers differently."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A tensor's place.

    Attributes:
        name: The tensor's name in the output.
        layer: Its layer, counted from 0; ``None`` outside the layers.
        layers: How many layers its stack has; 0 outside the layers.
    """

    name: str
    layer: int | None = None
    layers: int = 0
