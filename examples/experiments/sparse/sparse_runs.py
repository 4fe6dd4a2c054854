"""The runs: a learning rate chosen for each way on a held-out quarter, then a training for each way and seed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from examples.experiments.steps import add_line, read_lines
from weightops.algebra.loading import load, load_tokenizer
from weightops.algebra.opening import as_checkpoint
from weightops.recipes.data.source import split
from weightops.recipes.floor.checking import read_settings
from weightops.recipes.floor.components import component
from weightops.recipes.floor.trainer import measure
from weightops.recipes.routines import sft
from weightops.rows.encode import encode
from weightops.rows.reader import read_rows
from weightops.rows.row import Row

from . import sparse_rows
from .ways import GROUPS, WAYS

BASE = "smollm2-135m-instruct"
BATCH, ANSWERED, ANSWER_TOKENS = 2, 16, 120
TRIES = 2
"""Learning rates tried for each way, a factor of 4 between neighbours."""
KINDS = ("base", "tuning", "run", "answers")
"""Of measurements."""

Line = dict[str, Any]


class Experiment:
    """A folder with rows, models, and the results so far: a line of JSON a measurement."""

    def __init__(self, data: Path, work: Path, seeds: int) -> None:
        self.work, self.seeds, self.file = work, seeds, work / "results.jsonl"
        sparse_rows.write(data, work, load_tokenizer(as_checkpoint(BASE)), seeds)

    def run(self, until: float) -> bool:
        """Run what is missing, stopping at the first chance after a time; whether all is done."""
        return all(time.monotonic() <= until for _ in self._missing())

    def results(self, *kinds: str) -> list[Line]:
        """The measurements of some kinds so far, kind by kind; of all kinds if none is named."""
        lines = read_lines(self.file)
        return [line for kind in kinds or KINDS for line in lines if line["kind"] == kind]

    def _missing(self) -> Iterator[None]:
        """Run after run: the main comparison first, all ways of a seed before the next seed, the answers last."""
        if not self.results("base"):
            self._measure_base()
        for group in GROUPS:
            for way in group:
                while (rate := self._untried(way)) is not None:
                    self._tune(way, rate)
                    yield
            for seed, way in product(range(self.seeds), group):
                if not any((line["way"], line["seed"]) == (way, seed) for line in self.results("run")):
                    self._train(way, seed)
                    yield
        for name in ("base", *WAYS):
            if not any(line["way"] == name for line in self.results("answers")):
                self._answer(name)
                yield

    def _measure_base(self) -> None:
        """The test loss before any training."""
        model, tokenizer = load(BASE, "float32")
        rows = encode(tokenizer, self._rows("test"))
        objective = component("objectives", "next_token")().ready(model, tokenizer, rows)
        self._note(kind="base", loss=measure(model, rows, objective, BATCH)["loss"])

    def tried(self, way: str) -> dict[float, float]:
        """The held-out loss of each learning rate that was tried."""
        return {line["rate"]: line["loss"] for line in self.results("tuning") if line["way"] == way}

    def _untried(self, way: str) -> float | None:
        """The rate to try next: beyond the best one so far, until that has neighbours or enough were tried."""
        return next_rate(self.tried(way), WAYS[way].rate)

    def _tune(self, way: str, rate: float) -> None:
        learned, held_out = self._quarters(0)
        out = self.work / "tuning"
        done = sft.train(self._recipe(way, rate, 0), learned, held_out, out, overwrite=True)
        shutil.rmtree(out)
        self._note(kind="tuning", way=way, rate=rate, loss=done.measured["loss"])

    def _train(self, way: str, seed: int) -> None:
        tried, out = self.tried(way), self.work / "models" / f"{way}-{seed}"
        rate, begun = min(tried, key=lambda rate: tried[rate]), time.monotonic()
        learned, _ = self._quarters(seed)
        done = sft.train(self._recipe(way, rate, seed), learned, self._rows("test"), out, overwrite=True)
        if seed:
            shutil.rmtree(out)
        seconds = round(time.monotonic() - begun)
        self._note(kind="run", way=way, seed=seed, rate=rate, loss=done.measured["loss"], seconds=seconds)

    def _answer(self, name: str) -> None:
        """How many test problems a model of seed 0 answers exactly, greedily."""
        out = self.work / "models" / f"{name}-0"
        spec = {"base": BASE, "full": str(out)}.get(name, f"{BASE}+{out}")
        rows = self._rows("test")[:ANSWERED]
        answers = greedy_answers(spec, [str(row.prompt) for row in rows])
        right = sum(
            sparse_rows.final_number(answer) == sparse_rows.final_number(str(row.completion))
            for answer, row in zip(answers, rows, strict=True)
        )
        self._note(kind="answers", way=name, right=right, asked=len(rows))

    def _recipe(self, way: str, rate: float, seed: int) -> sft.SftRecipe:
        training = {"lr": rate, "epochs": 1, "batch": BATCH, "warmup": 0.1, "precision": "bf16", "seed": seed,
                    "update": dict(WAYS[way].update)}  # fmt: skip
        settings = {"base": BASE, "data": {"files": [str(self._file(f"train-{seed}"))]}, "training": training}
        recipe, faults = read_settings(sft.SftRecipe, settings)
        assert not faults, faults
        assert isinstance(recipe, sft.SftRecipe)
        return recipe

    def _quarters(self, seed: int) -> tuple[list[Row], list[Row]]:
        """Three quarters of a seed's rows to train on, and one to choose by, so that all runs have as many steps."""
        return split(self._rows(f"train-{seed}"), 0.25, seed)

    def _rows(self, name: str) -> list[Row]:
        return read_rows([self._file(name)])

    def _file(self, name: str) -> Path:
        return self.work / f"{name}.jsonl"

    def _note(self, **line: Any) -> None:
        add_line(line, self.file)


def next_rate(tried: dict[float, float], first: float) -> float | None:
    """The learning rate to try next, uphill from the first; ``None`` once the best one has both its neighbours.

    >>> next_rate({1e-3: 2.0, 4e-3: 1.9}, 1e-3)
    0.016
    """
    if not tried:
        return first
    best = min(tried, key=lambda rate: tried[rate])
    neighbours = [rate for rate in (4 * best, best / 4) if not any(abs(rate / known - 1) < 0.01 for known in tried)]
    return neighbours[0] if neighbours and len(tried) < TRIES else None


def greedy_answers(spec: str, questions: list[str], tokens: int = ANSWER_TOKENS) -> list[str]:
    """What a model answers to each question, the likeliest token each time."""
    model, tokenizer = load(spec, "bfloat16")
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    made = model.generate(**prompts, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    answers: list[str] = tokenizer.batch_decode(made[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers
