"""RAM and consensus in fused form: entries are judged by how many models changed or use them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..blocks import Blocks, Floats
from ..kernels import jit
from .combine import add_up, vector
from .forms import Results, fused

_TILE = 2048


@fused("consensus")
def consensus(blocks: Blocks, *, k: int = 2, tall_lambda: Any = 0.4, lambda_: float = 1.0) -> Results:
    """See :func:`weightops.ops.consensus.consensus`."""
    factors = vector(tall_lambda, blocks.models)
    for block in blocks:
        out = blocks.scratch("out", block.length)
        _used_sum(block.stack, factors, k, np.float32(lambda_), out)
        yield block.begin, out


@fused("ram")
def ram(blocks: Blocks, *, epsilon: float = 1e-5) -> Results:
    """See :func:`weightops.ops.ram.ram`."""
    return _mean_of_changes(blocks, np.ones(blocks.models, np.float32), epsilon)


@fused("ramplus_tl")
def ramplus_tl(blocks: Blocks, *, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> Results:
    """See :func:`weightops.ops.ram.ramplus_tl`."""
    changes = np.zeros((2, blocks.models), np.int64)
    for block in blocks:
        _count_changes(block.stack, np.float32(epsilon), changes)
    unique, shared = changes
    ratio = np.clip(shared / np.maximum(unique, 1), 0, alpha)
    yield from _mean_of_changes(blocks, (1 + r * ratio).astype(np.float32), epsilon)


def _mean_of_changes(blocks: Blocks, alone: Floats, epsilon: float) -> Results:
    """Each entry's mean over the models that changed it; a change of one model only times its factor, ``alone``."""
    for block in blocks:
        out = blocks.scratch("out", block.length)
        _mean(block.stack, alone, np.float32(epsilon), out)
        yield block.begin, out


@jit
def _used_sum(stack: Any, factors: Any, least: int, scale: Any, out: Any) -> None:
    """The sum of the task vectors where at least so many use it, times the scale."""
    zero = np.float32(0)
    users = np.empty(_TILE, np.int32)
    for lo in range(0, len(out), _TILE):
        total = out[lo : lo + _TILE]
        m = len(total)
        used = users[:m]
        used[:] = 0
        add_up(stack, lo, total)
        for i in range(len(factors)):
            factor, row = factors[i], stack[i, lo : lo + m]
            for j in range(m):
                used[j] += np.int32(np.abs(row[j]) > np.abs(total[j] - row[j]) * factor)
        for j in range(m):
            total[j] = (total[j] if used[j] >= least else zero) * scale


@jit
def _mean(stack: Any, alone: Any, epsilon: Any, out: Any) -> None:
    zero, one = np.float32(0), np.float32(1)
    counts = np.empty(_TILE, np.float32)
    for lo in range(0, len(out), _TILE):
        total = out[lo : lo + _TILE]
        m = len(total)
        count = counts[:m]
        total[:] = zero
        _count_models(stack, epsilon, lo, count)
        for i in range(len(alone)):
            factor, row = alone[i], stack[i, lo : lo + m]
            for j in range(m):
                value = row[j] * (factor if count[j] == one else one)
                total[j] += value if np.abs(row[j]) > epsilon else zero
        for j in range(m):
            total[j] /= count[j] if count[j] > one else one


@jit
def _count_models(stack: Any, epsilon: Any, lo: int, count: Any) -> None:
    """How many models changed each entry, from ``lo`` on."""
    zero, one = np.float32(0), np.float32(1)
    count[:] = zero
    for i in range(stack.shape[0]):
        row = stack[i, lo : lo + len(count)]
        for j in range(len(count)):
            count[j] += one if np.abs(row[j]) > epsilon else zero


@jit
def _count_changes(stack: Any, epsilon: Any, changes: Any) -> None:
    """Add each model's changed entries to ``changes``: in its first row those that no other model changed."""
    counts = np.empty(_TILE, np.float32)
    for lo in range(0, stack.shape[1], _TILE):
        count = counts[: min(_TILE, stack.shape[1] - lo)]
        _count_models(stack, epsilon, lo, count)
        for i in range(stack.shape[0]):
            row = stack[i, lo : lo + len(count)]
            unique, all_changes = np.int32(0), np.int32(0)
            for j in range(len(count)):
                changed = np.abs(row[j]) > epsilon
                all_changes += np.int32(changed)
                unique += np.int32(changed & (count[j] == np.float32(1)))
            changes[0, i] += unique
            changes[1, i] += all_changes - unique
