"""DELLA in fused form: ranks within each row from a radix sort of the magnitudes.

Before it is sorted, a row's magnitudes are made as short as they can be: what the differences of 16-bit weights leave
at zero is shifted out, and the smallest is subtracted. Then they have about 18 bits instead of 31.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import WeightopsError
from ...ops.draw import Draw, key
from ..blocks import Block, Blocks, Floats
from ..kernels import jit
from .combine import agreeing_sum, dropped, vector, weighted_sum
from .dare import uniform
from .forms import Results, fused

_DIGIT = 10  # most bits of a digit


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
    """One pass in which each entry is kept or dropped by its rank in its row, in place."""
    shares = np.broadcast_to(np.asarray(density, np.float64), (blocks.models,))
    widths = np.broadcast_to(np.asarray(epsilon, np.float64), (blocks.models,))
    vector(density, blocks.models)
    for share, width in zip(shares, widths, strict=True):
        if 0 < share < 1 and not (share - width > 0 and share + width < 1):
            raise WeightopsError(
                f"della: density {share:g} and epsilon {width:g}: density - epsilon and density + epsilon must both "
                f"be between 0 and 1; take epsilon below {min(share, 1 - share):g}"
            )
    by_rank = [_by_rank(blocks.row, share, width) for share, width in zip(shares, widths, strict=True)]
    order = np.empty((2, blocks.row), np.uint64)

    def drop(block: Block) -> None:
        chances = blocks.scratch("chances", block.length)
        for model, line in enumerate(block.stack):
            if shares[model] < 1:
                seed = np.uint64(key(draw.seed, draw.name, model))
                _chances(line, by_rank[model], order, chances)
                _drop(line, chances, seed, draw.offset + block.begin, rescale == "probability")

    return dropped(blocks, drop, to_l1=rescale == "l1")


def _by_rank(row: int, density: float, epsilon: float) -> Floats:
    """The probability to stay of each entry of a row, from the smallest magnitude up: [row]."""
    if density <= 0:
        return np.zeros(row, np.float32)
    share = np.arange(row) / (row - 1) if row > 1 else np.full(1, 0.5)
    return (density - epsilon + 2 * epsilon * share).astype(np.float32)


@jit
def _chances(line: Any, by_rank: Any, order: Any, chances: Any) -> None:
    """Each entry's probability to stay, by its rank of magnitude within its row."""
    row = len(by_rank)
    count = np.empty(1 << _DIGIT, np.uint32)
    for lo in range(0, len(line), row):
        _rank(line[lo : lo + row].view(np.uint32), by_rank, order, count, chances[lo : lo + row])


@jit
def _drop(line: Any, chances: Any, seed: Any, first: int, divides: bool) -> None:
    start, one = np.uint64(first), np.float32(1)
    for j in range(len(line)):
        chance = chances[j]
        divisor = chance if divides and chance > np.float32(0) else one
        kept = uniform(seed, start + np.uint64(j)) < chance
        line[j] = line[j] / divisor if kept else np.float32(0)


@jit
def _rank(bits: Any, by_rank: Any, order: Any, count: Any, chance: Any) -> None:
    """Give each entry what its rank has, from the smallest magnitude up; among equals the higher index first.

    A radix sort from the last digit to the first; words hold the digits still to sort by above an entry's index.
    """
    n = len(bits)
    least, shift, length = _digits(bits)
    passes = max(1, -(-length // _DIGIT))
    width = np.uint64(-(-length // passes))
    mask = (np.uint64(1) << width) - np.uint64(1)
    source, target = order[0], order[1]
    for i in range(n):
        magnitude = bits[n - 1 - i] & np.uint32(0x7FFFFFFF)
        digits = np.uint64((magnitude - least) >> shift) + np.uint64(1) if magnitude else np.uint64(0)
        source[i] = (digits << np.uint64(32)) | np.uint64(n - 1 - i)
    for p in range(passes):
        at = np.uint64(32) + np.uint64(p) * width
        count[: 1 << width] = 0
        for i in range(n):
            count[(source[i] >> at) & mask] += np.uint32(1)
        place = np.uint32(0)
        for b in range(1 << width):
            place, count[b] = place + count[b], place
        for i in range(n):
            digit = (source[i] >> at) & mask
            if p == passes - 1:
                chance[source[i] & np.uint64(0xFFFFFFFF)] = by_rank[count[digit]]
            else:
                target[count[digit]] = source[i]
            count[digit] += np.uint32(1)
        source, target = target, source


@jit
def _digits(bits: Any) -> tuple[Any, Any, int]:
    """The smallest magnitude that is not zero, the last bits that are zero in all, and the bits left to sort by."""
    used, least, most = np.uint32(0), np.uint32(0x7FFFFFFF), np.uint32(0)
    for j in range(len(bits)):
        magnitude = bits[j] & np.uint32(0x7FFFFFFF)
        used |= magnitude
        most = max(most, magnitude)
        least = min(least, magnitude if magnitude else np.uint32(0x7FFFFFFF))
    if not used:
        return np.uint32(0), np.uint32(0), 0
    shift = np.uint32(0)
    while not (used >> shift) & np.uint32(1):
        shift += np.uint32(1)
    length, rest = 1, np.uint64((most - least) >> shift) + np.uint64(1)
    while rest >> np.uint64(length):
        length += 1
    return least, shift, length
