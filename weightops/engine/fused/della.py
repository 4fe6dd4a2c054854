"""DELLA in fused form: ranks within each row from a radix sort of the magnitudes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import WeightopsError
from ...ops.draw import Draw, key
from ..blocks import Block, Blocks
from ..kernels import jit
from .combine import agreeing_sum, dropped, vector, weighted_sum
from .dare import uniform
from .forms import Results, fused

_DIGIT = 11  # three digits cover the 31 bits of a magnitude
_BINS = 1 << _DIGIT


@fused("della", rows=True)
def della(
    blocks: Blocks, *, draw: Draw, weight: Any = 1.0, density: Any = 1.0, epsilon: Any = 0.15, normalize: bool = True,
    rescale: str = "l1", lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.della.della`."""
    for block in _dropped(blocks, draw, density, epsilon, rescale):
        yield block.begin, agreeing_sum(block.stack, blocks.scratch("out", block.length), weight, normalize, lambda_)


@fused("della_linear", rows=True)
def della_linear(
    blocks: Blocks, *, draw: Draw, weight: Any = 1.0, density: Any = 1.0, epsilon: Any = 0.15, normalize: bool = False,
    rescale: str = "l1", lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.della.della_linear`."""
    for block in _dropped(blocks, draw, density, epsilon, rescale):
        yield block.begin, weighted_sum(block.stack, blocks.scratch("out", block.length), weight, normalize, lambda_)


def _dropped(blocks: Blocks, draw: Draw, density: Any, epsilon: Any, rescale: str) -> Iterator[Block]:
    shares = np.broadcast_to(np.asarray(density, np.float64), (blocks.models,))
    widths = np.broadcast_to(np.asarray(epsilon, np.float64), (blocks.models,))
    vector(density, blocks.models)
    for share, width in zip(shares, widths, strict=True):
        if 0 < share < 1 and not (share - width > 0 and share + width < 1):
            raise WeightopsError(
                f"della: density {share:g} and epsilon {width:g}: density - epsilon and density + epsilon must both "
                f"be between 0 and 1; take epsilon below {min(share, 1 - share):g}"
            )
    order = np.empty((2, blocks.row), np.uint64)

    def drop(block: Block) -> None:
        chances = blocks.scratch("chances", block.length)
        for model, line in enumerate(block.stack):
            if shares[model] < 1:
                seed = np.uint64(key(draw.seed, draw.name, model))
                _chances(line, blocks.row, shares[model], widths[model], order, chances)
                _drop(line, chances, seed, draw.offset + block.begin, rescale == "probability")

    return dropped(blocks, drop, to_l1=rescale == "l1")


@jit
def _chances(line: Any, row: int, density: float, epsilon: float, order: Any, chances: Any) -> None:
    """Each entry's probability to stay, by its rank of magnitude within its row."""
    if density <= 0:
        chances[:] = np.float32(0)
        return
    counts = np.empty((3, _BINS), np.int64)
    for lo in range(0, len(line), row):
        ascending = _ascending(line[lo : lo + row], order, counts)
        chance = chances[lo : lo + row]
        for rank in range(row):
            share = rank / (row - 1) if row > 1 else 0.5
            chance[ascending[rank] & np.uint64(0xFFFFFFFF)] = np.float32(density - epsilon + 2 * epsilon * share)


@jit
def _drop(line: Any, chances: Any, seed: Any, first: int, divides: bool) -> None:
    start, one = np.uint64(first), np.float32(1)
    for j in range(len(line)):
        chance = chances[j]
        divisor = chance if divides and chance > np.float32(0) else one
        kept = uniform(seed, start + np.uint64(j)) < chance
        line[j] = line[j] / divisor if kept else np.float32(0)


@jit
def _ascending(values: Any, order: Any, counts: Any) -> Any:
    """Indices in the lower half of each word, from the smallest magnitude up; among equals the higher index first."""
    bits = values.view(np.uint32)
    source, target = order[0], order[1]
    n = len(bits)
    counts[:] = 0
    for i in range(n):
        index = n - 1 - i
        magnitude = np.uint64(bits[index] & np.uint32(0x7FFFFFFF))
        source[i] = (magnitude << np.uint64(32)) | np.uint64(index)
        counts[0, magnitude & np.uint64(_BINS - 1)] += 1
        counts[1, (magnitude >> np.uint64(_DIGIT)) & np.uint64(_BINS - 1)] += 1
        counts[2, magnitude >> np.uint64(2 * _DIGIT)] += 1
    for digit in range(3):
        shift = np.uint64(32 + digit * _DIGIT)
        if n and counts[digit, (source[0] >> shift) & np.uint64(_BINS - 1)] == n:
            continue  # one digit for all: the differences of 16-bit weights leave the lowest at zero
        place = 0
        for b in range(_BINS):
            place, counts[digit, b] = place + counts[digit, b], place
        for i in range(n):
            b = (source[i] >> shift) & np.uint64(_BINS - 1)
            target[counts[digit, b]] = source[i]
            counts[digit, b] += 1
        source, target = target, source
    return source
