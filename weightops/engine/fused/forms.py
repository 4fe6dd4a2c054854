"""Methods as passes over blocks: the fast path beside the reference, for tensors of any size.

A fused method takes :class:`~weightops.engine.blocks.Blocks` and the settings of the reference, and yields (begin,
result) from the first element to the last, fp32; of a method that takes task vectors, without the base. It must equal
the reference, which tests check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..blocks import Blocks, Floats

Results = Iterator[tuple[int, Floats]]


@dataclass(frozen=True)
class Fused:
    """A fused method; ``rows``: its blocks must not cut rows."""

    function: Callable[..., Results]
    rows: bool = False

    def __call__(self, blocks: Blocks, settings: dict[str, Any]) -> Results:
        """Run it with the settings that it takes."""
        return self.function(blocks, **settings)


FUSED: dict[str, Fused] = {}


def fused(name: str, *, rows: bool = False) -> Callable[[Callable[..., Results]], Callable[..., Results]]:
    """Register a fused method under the name of its reference."""

    def register(function: Callable[..., Results]) -> Callable[..., Results]:
        if "blocks" not in inspect.signature(function).parameters:
            raise TypeError(f"{function.__name__}: a fused method takes `blocks` first")
        FUSED[name] = Fused(function, rows)
        return function

    return register
