"""Guards: models that say with one token whether a text is safe."""

from .card import GuardCard
from .judge import Guard
from .streaming.stream import Crossing, Stream, Streams

__all__ = ["Crossing", "Guard", "GuardCard", "Stream", "Streams"]
