"""The objective ``exits``: what four early exits cost over plain fine-tuning on the same rows of SmolLM2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import Spread, conditions
from .report import Section, Table, Target, megabytes, seconds, times

NAME = "exits"
SIZES = ("0.1B",)

_SHARES = (0.33, 0.5, 1.0)
_ROWS, _TOKENS = 4, 128


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure training steps, plain and with exits in turn, in one process for time and one each for memory."""
    figures: dict[str, Any] = {str(share): _child("time", share, repeats) for share in _SHARES}
    peaks = {kind: _child(kind, _SHARES[0], 1)["peak"] for kind in ("plain", "exits")}
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


def _child(kind: str, share: float, repeats: int) -> dict[str, Any]:
    """Run this file in a process of its own, so that a peak is that of one kind of step."""
    words = [sys.executable, "-m", "tests.bench.exits", kind, str(share), str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(kind: str, share: float, repeats: int) -> dict[str, Any]:
    """Seconds of each step of both kinds, one after the other; or the peak of resident memory of two steps of one."""
    import random
    import resource
    import time

    import torch

    from weightops.algebra.loading import load
    from weightops.recipes.objectives.exits import Exits
    from weightops.recipes.objectives.next_token import NextToken

    model, tokenizer = load("smollm2-135m-instruct", "float32")
    model.train()
    draw = random.Random(0)
    context = round(_TOKENS * (1 - share))
    rows = [
        {"input_ids": draw.choices(range(100, 40_000), k=_TOKENS), "trained": [n >= context for n in range(_TOKENS)]}
        for _ in range(_ROWS)
    ]
    objectives = {"plain": NextToken(), "exits": Exits(exits=(12, 18, 24, 30))}
    chosen = {name: each.ready(model, tokenizer, rows) for name, each in objectives.items() if kind in (name, "time")}
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for repeat in range(repeats + 1):
        for name, objective in chosen.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective.loss(model, objective.batch(rows))
            loss.backward()
            model.zero_grad()
            if repeat:  # the first step of each makes what the others reuse
                found[name].append(time.perf_counter() - begin)
    return {**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
