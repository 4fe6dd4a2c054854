"""The last step of the delta methods: add the kept entries, either all or those that agree in sign."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..blocks import Block, Blocks, Floats
from ..kernels import jit, jit_sum

Doubles = npt.NDArray[np.float64]

_TILE = 2048


def vector(value: Any, count: int) -> Floats:
    """A number for each model: [n], fp32, of one number or of n."""
    return np.broadcast_to(np.asarray(value, np.float32), (count,)).copy()


def l1_norms(stack: Floats) -> Doubles:
    """The L1 norm of each row, fp64: [n, m] to [n]."""
    norms = np.empty(len(stack))
    _l1_norms(stack, norms)
    return norms


def l1_factors(passed: Iterable[tuple[Doubles, Doubles]], count: int) -> Floats:
    """|full| / |kept| for each of ``count`` models; 1 if nothing is kept.

    Args:
        passed: For each block of a pass, the L1 norms of the task vectors and those of their kept entries.
    """
    before, after = np.zeros(count), np.zeros(count)
    for full, kept in passed:
        before += full
        after += kept
    return np.divide(before, after, out=np.ones_like(before), where=after > 0).astype(np.float32)


def dropped(blocks: Blocks, drop: Callable[[Block], None], *, to_l1: bool) -> Iterator[Block]:
    """Every block after ``drop`` has removed entries from its stack, in place.

    Args:
        to_l1: Scale what is left of each task vector to its L1 norm; this takes a pass more.
    """
    factors = l1_factors(_before_and_after(blocks, drop), blocks.models) if to_l1 else None
    for block in blocks:
        if factors is None or not blocks.kept:  # kept blocks still hold what the first pass left
            drop(block)
        if factors is not None:
            np.multiply(block.stack, factors[:, None], out=block.stack)
        yield block


def _before_and_after(blocks: Blocks, drop: Callable[[Block], None]) -> Iterator[tuple[Doubles, Doubles]]:
    for block in blocks:
        full = l1_norms(block.stack)
        drop(block)
        yield full, l1_norms(block.stack)


def weighted_sum(stack: Floats, out: Floats, weight: Any, normalize: bool, scale: float) -> Floats:
    """Sum of weight times delta, divided by the weights' sum if asked and not zero: [n, m] into out, [m]."""
    weights = vector(weight, len(stack))
    total = weights.sum(dtype=np.float32)
    _sum(stack, weights, total if normalize and abs(total) >= 1e-8 else np.float32(1), np.float32(scale), out)
    return out


def agreeing_sum(stack: Floats, out: Floats, weight: Any, normalize: bool, scale: float) -> Floats:
    """Sum of the weighted deltas with the sign of the sum, over their weights if asked: [n, m] into out, [m]."""
    _agreeing(stack, vector(weight, len(stack)), normalize, np.float32(scale), out)
    return out


@jit
def add_up(stack: Any, lo: int, total: Any) -> None:
    """The plain sum of the rows from ``lo`` on, in their order, into ``total``: a tile of a kernel."""
    total[:] = np.float32(0)
    for i in range(stack.shape[0]):
        row = stack[i, lo : lo + len(total)]
        for j in range(len(total)):
            total[j] += row[j]


@jit_sum
def _l1_norms(stack: Any, norms: Any) -> None:
    for i in range(len(norms)):
        row, total = stack[i], 0.0
        for j in range(len(row)):
            total += np.float64(abs(row[j]))
        norms[i] = total


@jit
def _sum(stack: Any, weights: Any, total: Any, scale: Any, out: Any) -> None:
    for lo in range(0, len(out), _TILE):
        merged = out[lo : lo + _TILE]
        merged[:] = np.float32(0)
        for i in range(len(weights)):
            weight, row = weights[i], stack[i, lo : lo + _TILE]
            for j in range(len(merged)):
                merged[j] += weight * row[j]
        for j in range(len(merged)):
            merged[j] = merged[j] / total * scale


@jit
def _agreeing(stack: Any, weights: Any, normalize: bool, scale: Any, out: Any) -> None:
    zero, one = np.float32(0), np.float32(1)
    signs, shares = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    for lo in range(0, len(out), _TILE):
        merged = out[lo : lo + _TILE]
        n = len(merged)
        sign, share = signs[:n], shares[:n]
        sign[:] = zero
        share[:] = zero
        merged[:] = zero
        for i in range(len(weights)):
            weight, row = weights[i], stack[i, lo : lo + n]
            for j in range(n):
                sign[j] += weight * row[j]
        for j in range(n):
            sign[j] = one if sign[j] >= zero else -one
        for i in range(len(weights)):
            weight, row = weights[i], stack[i, lo : lo + n]
            for j in range(n):
                value = weight * row[j]
                agrees = value * sign[j] > zero
                merged[j] += value if agrees else zero
                share[j] += weight if agrees else zero
        if normalize:
            for j in range(n):
                merged[j] /= share[j] if share[j] != zero else one
        for j in range(n):
            merged[j] *= scale
