"""Checkpoints of one run averaged, in place of the decay of its learning rate.

Source: WSM, warm-up, stable and merge, arXiv 2507.17634. A checkpoint's weights are the first one's plus the updates
since. An average with weights c_j >= 0 that sum to 1 therefore counts the update between checkpoints i - 1 and i
w_i = sum of c_j over j >= i times, and a wanted decay w gives c_j = w_j - w_(j+1), with w_0 = 1 and 0 after the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from ..errors import WeightopsError, short
from ..io.folder import read_json
from .checkpoint import Checkpoint, Delta
from .opening import open_all

#: From how far the run has come, 0 to 1, to the share of an update that counts.
DECAYS: Final[Mapping[str, Callable[[float], float]]] = {
    "linear": lambda x: 1 - x,
    "uniform": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


def decay_weights(count: int, decay: str) -> list[float]:
    """The weight of each of ``count`` checkpoints, the oldest first: at least 0, their sum 1.

    The plain mean is a linear decay, so ``uniform`` and ``linear`` are one. Ours: checkpoint i of k + 1 lies at
    i / (k + 1) of the decay, so that the update after the last one would count nothing.

    Raises:
        WeightopsError: no such decay, or no checkpoint.

    >>> decay_weights(4, "linear")
    [0.25, 0.25, 0.25, 0.25]
    """
    if decay not in DECAYS:
        raise WeightopsError(f"unknown decay {decay!r}; available: {', '.join(DECAYS)}")
    if count < 1:
        raise WeightopsError("no checkpoints to average; name at least one")
    counted = [DECAYS[decay](i / count) for i in range(count)] + [0.0]
    return [max(this - after, 0.0) for this, after in pairwise(counted)]


def average(checkpoints: Sequence[str | Path | Checkpoint], *, decay: str = "linear") -> Checkpoint:
    """The average of the checkpoints of one run as a checkpoint; lazy until it is saved.

    Args:
        checkpoints: The oldest first; folders that hold a ``trainer_state.json`` may come in any order.
        decay: One of :data:`DECAYS`.

    Raises:
        WeightopsError: no such decay, no checkpoint, or checkpoints of different tensors.
    """
    weights = decay_weights(len(checkpoints), decay)
    opened = iter(open_all(one for one in checkpoints if not isinstance(one, Checkpoint)))
    models = in_order_of_steps([one if isinstance(one, Checkpoint) else next(opened) for one in checkpoints])
    *earlier, last = models
    if problems := [line for model in earlier for line in differences(model, last, "name checkpoints of one run")]:
        raise WeightopsError(*problems)
    return weighted_mean([last, *earlier], [weights[-1], *weights[:-1]])


def weighted_mean(models: Sequence[Checkpoint], weights: Sequence[float]) -> Checkpoint:
    """A mean of models as a checkpoint, with everything beside the weights from the first.

    Args:
        weights: Of each model; their sum is 1.
    """
    first, *others = models
    added = Delta()
    for model, weight in zip(others, weights[1:], strict=True):
        added = added + weight * (model - first)
    return first + added


def in_order_of_steps(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints by the step that each one's trainer noted; as they are where one has no such note.

    The names ``checkpoint-1000`` and ``checkpoint-200`` come in the wrong order from a shell's ``checkpoint-*``.
    """
    steps = [_step(checkpoint) for checkpoint in checkpoints]
    if any(step is None for step in steps):
        return list(checkpoints)
    return [checkpoint for _, checkpoint in sorted(zip(steps, checkpoints, strict=True), key=lambda pair: pair[0] or 0)]


def _step(checkpoint: Checkpoint) -> int | None:
    folder = next(iter(checkpoint.folders), None)
    step = read_json(folder / "trainer_state.json").get("global_step") if folder is not None else None
    return step if type(step) is int else None


def differences(one: Checkpoint, other: Checkpoint, advice: str) -> list[str]:
    """A line where two checkpoints do not hold the same tensors in the same shapes, with what to do about it."""
    if alone := sorted(set(one.names) ^ set(other.names)):
        where = one.spec if alone[0] in one.names else other.spec
        return [f"{short(alone[0])}: only in {where} ({len(alone)} such tensors); {advice}"]
    grown = [name for name in one.names if one.shape(name) != other.shape(name)]
    return [
        f"{short(name)}: shape {one.shape(name)} in {one.spec}, {other.shape(name)} in {other.spec}; {advice}"
        for name in grown[:1]
    ]
