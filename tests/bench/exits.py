"""The objective ``exits``: what four early exits cost over plain fine-tuning on the same rows of SmolLM2."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .measure import Spread, conditions
from .report import Section, Table, Target, megabytes, seconds, times
from .training_steps import in_process, measure_steps

NAME = "exits"
SIZES = ("0.1B",)

_MODULE = "tests.bench.exits"
_SHARES = (0.33, 0.5, 1.0)
_ROWS, _TOKENS = 4, 128


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure training steps, plain and with exits in turn, in one process for time and one each for memory."""
    figures: dict[str, Any] = {str(share): in_process(_MODULE, "time", share, repeats) for share in _SHARES}
    peaks = {kind: in_process(_MODULE, kind, _SHARES[0], 1)["peak"] for kind in ("plain", "exits")}
    ratios = {
        share: Spread.of([e / p for e, p in zip(runs["exits"], runs["plain"], strict=True)])
        for share, runs in figures.items()
    }
    growth = peaks["exits"] / peaks["plain"]
    typical = str(_SHARES[0])
    return Section(
        name=NAME,
        title="Training with exits",
        conditions=(*conditions(repeats, "torch", "transformers", "weightops"), f"{_ROWS} rows of {_TOKENS} tokens"),
        targets=(
            Target(
                "a step with 4 exits, a third of the tokens learned",
                "1.15 x",
                times(ratios[typical]),
                ratios[typical].median <= 1.15,
            ),
            Target("peak memory with 4 exits", "1.3 x", f"{growth:.2f} x", growth <= 1.3),
        ),
        tables=(
            Table(
                "A step of plain fine-tuning and one with exits at 12, 18, 24 and 30",
                ("share of the tokens that is learned", "plain", "exits", "ratio"),
                tuple(
                    (share, seconds(Spread.of(runs["plain"])), seconds(Spread.of(runs["exits"])), times(ratios[share]))
                    for share, runs in figures.items()
                ),
                "SmolLM2-135M, all weights, bf16 autocast, loss and gradient without the optimizer's step. Plain fine-tuning computes "
                "the logits of all tokens, as transformers does; exits only those of the tokens that are learned. Peak "
                f"memory of the process: {megabytes(peaks['plain'])} and {megabytes(peaks['exits'])}.",
            ),
        ),
        figures={"steps": figures, "peaks": peaks},
    )


def _measure(kind: str, share: float, repeats: int) -> dict[str, Any]:
    """Steps of both kinds (``time``), or of one.

    Args:
        share: Of the tokens, which is learned: the last of each row.
    """
    from weightops.recipes.objectives.exits import Exits
    from weightops.recipes.objectives.next_token import NextToken

    draw = random.Random(0)
    context = round(_TOKENS * (1 - share))
    rows = [
        {"input_ids": draw.choices(range(100, 40_000), k=_TOKENS), "trained": [n >= context for n in range(_TOKENS)]}
        for _ in range(_ROWS)
    ]
    kinds = {"plain": NextToken, "exits": partial(Exits, exits=(12, 18, 24, 30))}
    return measure_steps({name: (make, rows) for name, make in kinds.items() if kind in (name, "time")}, repeats)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
