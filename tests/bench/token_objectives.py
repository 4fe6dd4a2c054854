"""The objectives over tokens: what a step of each costs over one of plain fine-tuning on the same tokens of SmolLM2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .measure import Spread, conditions
from .report import Section, Table, Target, megabytes, seconds, times
from .training_steps import in_process, measure_steps

NAME = "objectives"
SIZES = ("0.1B",)

_MODULE = "tests.bench.token_objectives"
_ROWS, _TOKENS, _NEGATIVES = 4, 128, 2
_TIME, _MEMORY = 1.05, 1.1
_PLAIN = {"discriminative_tuning": "plain, answers and negatives"}
"""What an objective is compared with, where that is not ``plain``."""


def _kinds() -> dict[str, Callable[[], Any]]:
    from weightops.recipes.objectives.discriminative_tuning import DiscriminativeTuning
    from weightops.recipes.objectives.dynamic_tuning import DynamicTuning
    from weightops.recipes.objectives.fault_aware import FaultAware
    from weightops.recipes.objectives.key_tokens import KeyTokens
    from weightops.recipes.objectives.next_token import NextToken
    from weightops.recipes.objectives.one_token_rollout import OneTokenRollout
    from weightops.recipes.objectives.probability_family import ProbabilityFamily

    return {
        "plain": NextToken,
        "probability_family": ProbabilityFamily,
        "probability_family, above": lambda: ProbabilityFamily(power=0.0, keep="above"),
        "dynamic_tuning": DynamicTuning,
        "one_token_rollout, 256 draws": OneTokenRollout,
        "one_token_rollout, exact": lambda: OneTokenRollout(exact=True),
        "fault_aware": FaultAware,
        "key_tokens": KeyTokens,
        "plain, answers and negatives": NextToken,
        "discriminative_tuning": lambda: DiscriminativeTuning(negatives=_NEGATIVES),
    }


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure steps of all objectives in turn in one process for time, one of each in a process of its own for memory."""
    times_of = in_process(_MODULE, "time", repeats)
    peaks = {kind: in_process(_MODULE, kind, 0)["peak"] for kind in _kinds()}
    compared = {kind: _PLAIN.get(kind, "plain") for kind in _kinds() if not kind.startswith("plain")}
    slower = {
        kind: Spread.of([one / other for one, other in zip(times_of[kind], times_of[plain], strict=True)])
        for kind, plain in compared.items()
    }
    larger = {kind: peaks[kind] / peaks[plain] for kind, plain in compared.items()}
    slowest, largest = max(slower, key=lambda kind: slower[kind].median), max(larger, key=lambda kind: larger[kind])
    rows = [
        (
            kind,
            seconds(Spread.of(times_of[kind])),
            times(slower[kind]) if kind in slower else "",
            megabytes(peaks[kind]),
            f"{larger[kind]:.2f} x" if kind in larger else "",
        )
        for kind in _kinds()
    ]
    return Section(
        name=NAME,
        title="Objectives over tokens",
        conditions=(*conditions(repeats, "torch", "transformers", "weightops"), f"{_ROWS} rows of {_TOKENS} tokens"),
        targets=(
            Target(f"a step of the slowest, {slowest}", f"{_TIME} x", times(slower[slowest]),
                   slower[slowest].median <= _TIME),
            Target(f"peak memory of the largest, {largest}", f"{_MEMORY} x", f"{larger[largest]:.2f} x",
                   larger[largest] <= _MEMORY),
        ),
        tables=(
            Table(
                "A step of each objective and one of plain fine-tuning",
                ("objective", "step", "of plain", "peak memory", "of plain"),
                tuple(rows),
                "SmolLM2-135M, all weights, bf16 autocast, loss and gradient without the optimizer's step, all tokens "
                f"learned. discriminative_tuning reads {_NEGATIVES} negatives with each of 2 rows; it is compared with "
                "plain fine-tuning on the same 6 sequences, and its memory includes the untrained model's reading of "
                "the negatives before training. Peak memory is that of a process of its own.",
            ),
        ),
        figures={"steps": times_of, "peaks": peaks},
    )  # fmt: skip


def _rows(kind: str) -> list[dict[str, Any]]:
    """Random tokens, with the fields that an objective reads."""
    import random

    draw = random.Random(0)
    texts = [{"input_ids": draw.choices(range(100, 40_000), k=_TOKENS)} for _ in range(6)]
    if kind == "plain, answers and negatives":
        return texts
    if kind == "discriminative_tuning":
        return [{**texts[at], "row_index": at, "negatives": texts[2 + 2 * at : 4 + 2 * at]} for at in range(2)]
    further = {
        "marked": [number % 5 == 0 for number in range(_TOKENS)],
        "token_weights": [1.0 + 8 * (number % 9 == 0) for number in range(_TOKENS)],
    }
    return [{**text, **further, "row_index": number} for number, text in enumerate(texts[:_ROWS])]


def _measure(chosen: str, repeats: int) -> dict[str, Any]:
    """Steps of all kinds (``time``), or of one."""
    kinds = {kind: (make, _rows(kind)) for kind, make in _kinds().items() if chosen in (kind, "time")}
    return measure_steps(kinds, repeats)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
