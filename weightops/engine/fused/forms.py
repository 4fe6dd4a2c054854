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

from ...ops.registry import find
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
    """Register a fused method under the name of its reference.

    Raises:
        TypeError: it does not take `blocks` and then what its reference takes.
        WeightopsError: there is no method of that name.
    """
    reference = find(name)
    taken = ["blocks", *(p.argument for p in reference.parameters), *reference.fills]

    def register(function: Callable[..., Results]) -> Callable[..., Results]:
        if sorted(inspect.signature(function).parameters) != sorted(taken):
            raise TypeError(f"{function.__name__}: the fused form of {name} takes {', '.join(taken)}")
        FUSED[name] = Fused(function, rows)
        return function

    return register
