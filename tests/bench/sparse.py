"""Sparse training against LoRA, full training and PEFT's sparse adapters: time and memory of a step.

Each way runs in a process of its own, all on one layer, then all on a model as large as SmolLM2-135M with random weights.
The processes take turns for each step, so that a neighbour's load falls on all of them alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .measure import Spread, conditions
from .report import Section, Table, Target, megabytes, times

WAYS = ("lora", "ag", "ma", "full", "shira", "supertuning")
_NAMES = {
    "lora": "LoRA",
    "ag": "SpIEL-AG",
    "ma": "SpIEL-MA",
    "full": "full",
    "shira": "PEFT SHiRA",
    "supertuning": "PEFT Supertuning",
}
_STEPS = {"layer": 5, "model": 1}  # for each repeat
_CHILD = Path(__file__).with_name("sparse_child.py")


@dataclass(frozen=True)
class Measured:
    """One way on one size.

    Attributes:
        steps: Seconds of each ordinary step.
        peak: Peak memory of a step beyond the model's own, bytes.
        entries: Parameters that train.
        exchange: Seconds that a round of 20 steps takes longer because entries are exchanged in it.
    """

    steps: tuple[float, ...]
    peak: int
    entries: int
    exchange: float = 0.0


@dataclass(frozen=True)
class SparseBench:
    """The benchmark of one size, as :mod:`tests.bench.__main__` runs it."""

    NAME: str
    SIZES: tuple[str]

    def bench(self, sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
        """Measure every way."""
        (size,) = self.SIZES
        if tuple(sizes) != self.SIZES:
            raise RuntimeError(f"{', '.join(sizes)}: the size of {self.NAME} is {size}")
        measured = _measure(size, repeats * _STEPS[size])
        return Section(
            name=self.NAME,
            title=_TITLES[size],
            conditions=conditions(repeats, "torch", "transformers", "peft", "weightops"),
            targets=tuple(_targets(measured, _BOUNDS[size])),
            tables=(_table(size, measured),),
            figures={way: vars(each) for way, each in measured.items()},
        )


LAYER, MODEL = SparseBench("sparse-layer", ("layer",)), SparseBench("sparse-model", ("model",))


def _measure(size: str, count: int) -> dict[str, Measured]:
    """Every way in a process that waits for its turn."""
    children = {}
    try:
        for way in WAYS:
            command = [sys.executable, str(_CHILD), size, way]
            children[way] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for way, child in children.items():
            _ask(child, way, "begin")
        steps: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(count):
            for way, child in children.items():
                steps[way].append(_ask(child, way, "step"))
        finals = {way: _ask(child, way, "end") for way, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return {
        way: Measured(tuple(steps[way]), final["peak"], final["entries"], final["exchange"])
        for way, final in finals.items()
    }


def _ask(child: subprocess.Popen[str], way: str, word: str):  # type: ignore[no-untyped-def]
    assert child.stdin is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()
    return _answer(child, way)


def _answer(child: subprocess.Popen[str], way: str):  # type: ignore[no-untyped-def]
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{way}: the process ended early with exit code {child.wait()}")
    return json.loads(line)


def _against(measured: Mapping[str, Measured], way: str) -> Spread:
    """Step by step, against LoRA's of the same turn."""
    lora = measured["lora"].steps
    return Spread.of([mine / theirs for mine, theirs in zip(measured[way].steps, lora, strict=True)])


def _targets(measured: Mapping[str, Measured], bound: float) -> list[Target]:
    targets = []
    for way in ("ag", "ma"):
        one, lora = measured[way], measured["lora"]
        ratio = _against(measured, way).median
        share = one.exchange / (20 * Spread.of(one.steps).median)
        name = _NAMES[way]
        targets += [
            Target(f"{name}, a step of LoRA's", f"{bound} x", f"{ratio:.2f} x", ratio <= bound),
            Target(f"{name}, peak memory of LoRA's", "1 x", f"{one.peak / lora.peak:.2f} x", one.peak <= lora.peak),
            Target(f"{name}, exchanges in 20 steps", "5 %", f"{100 * share:.1f} %", share <= 0.05),
        ]
    return targets


def _table(size: str, measured: Mapping[str, Measured]) -> Table:
    rows = []
    for way, each in measured.items():
        median = f"{1000 * Spread.of(each.steps).median:.0f} ms"
        exchange = f"{1000 * each.exchange:.0f} ms" if each.exchange else ""
        rows.append(
            (_NAMES[way], f"{each.entries:,}", median, times(_against(measured, way)), megabytes(each.peak), exchange)
        )
    head = ("way", "trained", "step", "of LoRA's", "peak extra memory", "exchanges in 20 steps")
    return Table("Step by step", head, tuple(rows), _NOTES[size])


_TITLES = {
    "layer": "Sparse training: one layer, 2048 x 2048",
    "model": "Sparse training: a whole model of SmolLM2-135M's shape",
}
_BOUNDS = {"layer": 0.95, "model": 1.05}
_NOTES = {
    "layer": "0.5 % of the weight, 1024 tokens, fp32: forward, backward and optimizer. A frozen layer's gradient of the "
    "inputs is computed in all. Memory beyond the layer and its inputs.",
    "model": "0.5 % of all parameters, LoRA of the rank next to that, 4 rows of 128 tokens, fp32. Memory beyond the model.",
}
