"""TIES and Breadcrumbs in fused form: thresholds from histograms, then one pass that trims and adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..blocks import Block, Blocks, Floats
from .combine import agreeing_sum, l1_factors, l1_norms, vector, weighted_sum
from .forms import Results, fused
from .select import EVERYTHING, NOTHING, Selection, between, select

Combine = Callable[[Floats, Floats, Any, bool, float], Floats]


@fused("ties")
def ties(
    blocks: Blocks, *, weight: Any = 1.0, density: Any = 1.0, normalize: bool = True, rescale: bool = False,
    lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.ties.ties`."""
    shares = _doubles(density, blocks.models)
    counts = [max(_kept(share, blocks.count), 1 if share > 0 else 0) for share in shares]
    kept = _select(blocks, [[count] for count in counts])
    return _trimmed(blocks, [(low, NOTHING) for (low,) in kept], rescale, agreeing_sum, weight, normalize, lambda_)


@fused("breadcrumbs")
def breadcrumbs(
    blocks: Blocks, *, weight: Any = 1.0, density: Any = 1.0, gamma: Any = 0.01, normalize: bool = False,
    rescale: bool = False, lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.breadcrumbs.breadcrumbs`."""
    ranges = _middle(blocks, density, gamma)
    return _trimmed(blocks, ranges, rescale, weighted_sum, weight, normalize, lambda_)


@fused("breadcrumbs_ties")
def breadcrumbs_ties(
    blocks: Blocks, *, weight: Any = 1.0, density: Any = 1.0, gamma: Any = 0.01, normalize: bool = False,
    rescale: bool = False, lambda_: float = 1.0,
) -> Results:  # fmt: skip
    """See :func:`weightops.ops.breadcrumbs.breadcrumbs_ties`."""
    ranges = _middle(blocks, density, gamma)
    return _trimmed(blocks, ranges, rescale, agreeing_sum, weight, normalize, lambda_)


def _middle(blocks: Blocks, density: Any, gamma: Any) -> list[tuple[Selection, Selection]]:
    """For each model, the selection down to the density, and that of the largest entries, which are left out."""
    counts = []
    for share, top in zip(_doubles(density, blocks.models), _doubles(gamma, blocks.models), strict=True):
        count = _kept(share, blocks.count)
        skipped = min(int(top * blocks.count), blocks.count - count)
        counts.append([skipped + count, skipped])
    return [(low, high) for low, high in _select(blocks, counts)]


def _select(blocks: Blocks, counts: list[list[int]]) -> list[list[Selection]]:
    return select(lambda: (block.stack for block in blocks), blocks.count, counts)


def _trimmed(
    blocks: Blocks, ranges: list[tuple[Selection, Selection]], rescale: bool, combine: Combine, *settings: Any
) -> Results:
    """Trim each task vector to its range, rescale it to its L1 norm if ``rescale``, and combine."""
    passed = ((l1_norms(block.stack), l1_norms(kept)) for block, kept in _kept_blocks(blocks, ranges))
    factors = l1_factors(passed, blocks.models) if rescale else np.ones(blocks.models, np.float32)
    for block, kept in _kept_blocks(blocks, ranges):
        if rescale:
            kept *= factors[:, None]
        yield block.begin, combine(kept, blocks.scratch("out", block.length), *settings)


def _kept_blocks(blocks: Blocks, ranges: list[tuple[Selection, Selection]]) -> Iterator[tuple[Block, Floats]]:
    """One pass: each block with its kept entries."""
    remaining = [(replace(low), replace(high)) for low, high in ranges]
    for block in blocks:
        kept = blocks.scratch("kept", *block.stack.shape)
        for row, (low, high) in enumerate(remaining):
            if low == EVERYTHING and high == NOTHING:
                kept[row] = block.stack[row]
            else:
                low.ties, high.ties = between(
                    block.stack[row], low.threshold, low.ties, high.threshold, high.ties, kept[row]
                )
        yield block, kept


def _kept(density: float, count: int) -> int:
    return min(max(int(density * count), 0), count)


def _doubles(value: Any, count: int) -> list[float]:
    """A number for each model, in double precision: a count must not depend on a rounding to fp32."""
    vector(value, count)
    return [float(number) for number in np.broadcast_to(np.asarray(value, np.float64), (count,))]
