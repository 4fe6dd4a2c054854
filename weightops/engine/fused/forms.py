"""Merge methods as passes over blocks: a fast form next to the reference, for tensors of any size.

A fused method takes :class:`~weightops.engine.blocks.Blocks` and the settings of the reference, and yields (begin,
result) from the first element to the last, fp32. A method that takes task vectors yields the result without the base.
The result must equal the reference; tests check this.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...ops.registry import find
from ..blocks import Blocks, Floats

Results = Iterator[tuple[int, Floats]]


@dataclass(frozen=True)
class Fused:
    """A fused method; ``rows``: its blocks must not split rows."""

    function: Callable[..., Results]
    rows: bool = False

    def __call__(self, blocks: Blocks, settings: dict[str, Any]) -> Results:
        """Run the method with these settings."""
        return self.function(blocks, **settings)


FUSED: dict[str, Fused] = {}


def fused(name: str, *, rows: bool = False) -> Callable[[Callable[..., Results]], Callable[..., Results]]:
    """Register a fused method under the name of its reference.

    Raises:
        TypeError: the function's arguments are not `blocks` and those of the reference.
        WeightopsError: no method has this name.
    """
    reference = find(name)
    fills = [name for name in reference.fills if name != "base"]  # blocks bring it
    taken = ["blocks", *(p.argument for p in reference.parameters), *fills]

    def register(function: Callable[..., Results]) -> Callable[..., Results]:
        if sorted(inspect.signature(function).parameters) != sorted(taken):
            raise TypeError(f"{function.__name__}: the fused form of {name} takes {', '.join(taken)}")
        FUSED[name] = Fused(function, rows)
        return function

    return register
