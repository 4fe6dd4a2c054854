"""The runs: each skill trained by its routine and by plain fine-tuning, both pairs merged, everything measured."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from examples.experiments.sparse.sparse_runs import greedy_answers
from examples.experiments.steps import add_line, read_lines, weightops, write_lines
from weightops.algebra.loading import load, load_tokenizer
from weightops.algebra.opening import as_checkpoint
from weightops.recipes.data.tool_calls import call_in, parameters_by_tool, reward
from weightops.recipes.floor.components import component
from weightops.recipes.floor.trainer import measure
from weightops.rows.encode import encode
from weightops.rows.row import Row

from . import skill_rows

BASE = "smollm2-135m-instruct"
HERE = Path(__file__).parent
BATCH, CALL_TOKENS = 10, 40
MERGES: Mapping[str, Mapping[str, Any]] = {
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.5}},
}
PAIRS: Mapping[str, tuple[str, str]] = {"routines": ("key tokens", "grape"), "plain": ("plain calls", "plain problems")}
"""What is merged: the model of each skill, by the routine's training and by plain fine-tuning."""


class Experiment:
    """A folder with rows, models, and the results so far: a line of JSON a measurement."""

    def __init__(self, data: Path, work: Path) -> None:
        self.work, self.file = work, work / "results.jsonl"
        self.tokenizer = load_tokenizer(as_checkpoint(BASE))
        self.calls, self.test_calls = skill_rows.calls(data, self.tokenizer)
        self.problems, self.test_problems = skill_rows.problems(data, self.tokenizer)

    def results(self) -> list[dict[str, Any]]:
        """The measurements so far."""
        return read_lines(self.file)

    def run(self, seeds: int, until: float) -> bool:
        """Run what is missing, seed after seed, stopping at the first chance after a time; whether all is done."""
        return all(time.monotonic() <= until for _ in self._missing(seeds))

    def _missing(self, seeds: int) -> Iterator[None]:
        self._measure(0, "base", BASE)
        for seed in range(seeds):
            folder = self.work / f"seed-{seed}"
            for pair, parts in PAIRS.items():
                for name in parts:
                    self._measure(seed, name, f"{BASE}+{self._trained(seed, name)}")
                    yield
                for method in MERGES:
                    merged = self._merged(folder, pair, method)
                    self._measure(seed, f"{pair} {method}", str(merged))
                    yield

    def _trained(self, seed: int, name: str) -> Path:
        """The adapter of one skill, by ``weightops train``."""
        out = self.work / f"seed-{seed}" / name.replace(" ", "-")
        if not out.exists():
            recipe = HERE / ("tool-calls.yaml" if name in ("key tokens", "plain calls") else "word-problems.yaml")
            sets = [f"data.files=[{self._rows(seed, name)}]", f"training.seed={seed}"]
            sets += {"plain calls": ["objective=next_token"], "plain problems": ["rewrite=null"]}.get(name, [])
            weightops("train", recipe, *(word for each in sets for word in ("--set", each)), "--out", out)
        return out

    def _rows(self, seed: int, name: str) -> Path:
        """The rows of a training, in a file."""
        file = self.work / f"seed-{seed}" / f"{name.replace(' ', '-')}.jsonl"
        if name == "plain problems":
            tokens = json.loads((self._trained(seed, "grape") / "training.json").read_text("utf-8"))["learnt_tokens"]
            return write_lines(self._random_answers(seed, tokens), file)
        rows = self.problems if name == "grape" else self.calls
        return write_lines(skill_rows.drawn(rows, seed)[: skill_rows.TRAIN], file)

    def _random_answers(self, seed: int, tokens: int) -> Iterator[dict[str, Any]]:
        """Problems in the order of the other training, each with one of its answers at random, of as many tokens."""
        draw, objective = random.Random(f"answers/{seed}"), component("objectives", "next_token")()
        for row in skill_rows.drawn(self.problems, seed):
            if tokens <= 0:
                return
            yield (answer := skill_rows.answered(row, draw.randrange(2)))
            tokens -= sum(map(objective.learnt_tokens, self._encoded([answer])))

    def _merged(self, folder: Path, pair: str, method: str) -> Path:
        """The two models of a pair as one, by ``weightops merge``."""
        out = folder / f"{pair}-{method}"
        if not out.exists():
            parts = [folder / name.replace(" ", "-") for name in PAIRS[pair]]
            models = [{"model": f"{BASE}+{part}", "parameters": {"weight": 1.0}} for part in parts]
            file = folder / f"{pair}-{method}.yml"
            config = {"models": models, "base_model": BASE, "dtype": "bfloat16", **MERGES[method]}
            file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
            weightops("merge", file, out)
        return out

    def _measure(self, seed: int, name: str, spec: str) -> None:
        """Add the losses on both skills, and the calls that a model writes, to the results, if they are not there."""
        if any((line["seed"], line["name"]) == (seed, name) for line in self.results()):
            return
        begun = time.monotonic()
        model, _ = load(spec, "bfloat16")
        objective = component("objectives", "next_token")().ready(model, self.tokenizer, ())
        losses = {skill: measure(model, rows, objective, BATCH)["loss"] for skill, rows in self._tests.items()}
        answers = greedy_answers(spec, [row["prompt"] for row in self.test_calls], CALL_TOKENS)
        seconds = round(time.monotonic() - begun)
        add_line(
            {"seed": seed, "name": name, **losses, **judged(self.test_calls, answers), "seconds": seconds}, self.file
        )

    @cached_property
    def _tests(self) -> dict[str, list[dict[str, Any]]]:
        """The test rows of each skill, encoded, those of like length together."""
        tests = {"calls": self.test_calls, "problems": self.test_problems}
        return {
            skill: sorted(self._encoded(rows), key=lambda row: len(row["input_ids"])) for skill, rows in tests.items()
        }

    def _encoded(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        encoded: list[dict[str, Any]] = encode(self.tokenizer, [Row.of("row", row) for row in rows])
        return encoded


def judged(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """How many answers call the right tool, and how many with the right arguments; the mean of TL-Training's reward."""
    pairs = [(call_in(answer), call_in(row["completion"])) for row, answer in zip(rows, answers, strict=True)]
    rewards = [
        reward(call, gold, parameters_by_tool(row["tools"]) or {})
        for row, (call, gold) in zip(rows, pairs, strict=True)
        if gold is not None
    ]
    right = sum(call is not None and gold is not None and call.tool == gold.tool for call, gold in pairs)
    return {"right tools": right, "right calls": rewards.count(1.0), "reward": sum(rewards) / len(rewards)}
