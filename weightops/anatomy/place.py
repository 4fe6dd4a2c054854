"""A tensor's name and layer, for merge methods that treat layers differently."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A tensor's place in its model.

    Attributes:
        name: The tensor's name in the output.
        layer: Its layer, counted from 0; ``None`` outside the layers.
        layers: Number of layers of its stack; 0 outside the layers.
    """

    name: str
    layer: int | None = None
    layers: int = 0
