"""Random numbers that depend on the element, not on the order in which elements are visited.

A merge must give the same bytes for any slice size, thread count or interruption, so a draw is a hash of
(seed, tensor name, model, flat index): ours, SplitMix64's finaliser (Steele, Lea and Flood 2014) over a counter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def key(seed: int, name: str, model: int) -> int:
    """The 64-bit key of one model's tensor."""
    digest = hashlib.sha256(f"{seed}/{name}/{model}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@dataclass(frozen=True)
class Draw:
    """Uniform numbers for the elements of one tensor, or of the part of it that starts at flat index ``offset``.

    >>> draw = Draw(seed=0, name="w")
    >>> draw.uniform(0, 4)[1:3].tolist() == draw.uniform(0, 2, start=1).tolist() == draw.at(1).uniform(0, 2).tolist()
    True
    """

    seed: int
    name: str
    offset: int = 0

    def at(self, offset: int) -> Draw:
        """The same draw for a slice that begins ``offset`` elements later."""
        return replace(self, offset=self.offset + offset)

    def uniform(self, model: int, count: int, start: int = 0) -> npt.NDArray[np.float32]:
        """Numbers in [0, 1) of ``count`` elements of one model from ``start`` on (flat, C order): [count], fp32."""
        first = self.offset + start + 1
        counter = np.arange(first, first + count, dtype=np.uint64)
        with np.errstate(over="ignore"):
            z = counter * GOLDEN + np.uint64(key(self.seed, self.name, model))
            z = (z ^ (z >> np.uint64(30))) * _MIX1
            z = (z ^ (z >> np.uint64(27))) * _MIX2
            z ^= z >> np.uint64(31)
        return ((z >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)
