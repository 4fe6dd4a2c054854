"""DARE in fused form: the random number of each element is hashed while the element is processed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...ops.draw import Draw, key
from ..blocks import Block, Blocks
from ..kernels import jit
from .combine import agreeing_sum, dropped, vector, weighted_sum
from .forms import Results, fused


@fused("dare_linear")
def dare_linear(
    blocks: Blocks, *, draw: Draw, weight: Any = 1.0, density: Any = 1.0, normalize: bool = False,
    rescale: str = "probability", lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.dare.dare_linear`."""
    for block in _dropped(blocks, draw, density, rescale):
        yield block.begin, weighted_sum(block.stack, blocks.scratch("out", block.length), weight, normalize, lambda_)


@fused("dare_ties")
def dare_ties(
    blocks: Blocks, *, draw: Draw, weight: Any = 1.0, density: Any = 1.0, normalize: bool = False,
    rescale: str = "probability", lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.dare.dare_ties`."""
    for block in _dropped(blocks, draw, density, rescale):
        yield block.begin, agreeing_sum(block.stack, blocks.scratch("out", block.length), weight, normalize, lambda_)


def _dropped(blocks: Blocks, draw: Draw, density: Any, rescale: str) -> Iterator[Block]:
    """Each block after its entries were kept or dropped at random, in place."""
    shares = np.clip(vector(density, blocks.models), 0, 1)

    def drop(block: Block) -> None:
        for model, row in enumerate(block.stack):
            seed = np.uint64(key(draw.seed, draw.name, model))
            _drop(row, seed, draw.offset + block.begin, shares[model], rescale == "probability")

    return dropped(blocks, drop, to_l1=rescale == "l1")


@jit
def uniform(seed: Any, element: Any) -> Any:
    """The random number of one element, equal to :meth:`weightops.ops.draw.Draw.uniform`."""
    z = np.uint64(element + 1) * np.uint64(0x9E3779B97F4A7C15) + seed
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.float32(z >> np.uint64(40)) * np.float32(2.0**-24)


@jit
def _drop(row: Any, seed: Any, first: int, share: Any, divides: bool) -> None:
    divisor = share if divides and share > np.float32(0) else np.float32(1)
    start = np.uint64(first)
    for j in range(len(row)):
        kept = uniform(seed, start + np.uint64(j)) < share
        row[j] = row[j] / divisor if kept else np.float32(0)
