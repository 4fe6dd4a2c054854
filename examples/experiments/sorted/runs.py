"""The three trainings of a seed, on the same tokens, and the loss behind every sixth layer of what they made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiments.steps import add_line, read_data, read_lines
from weightops.algebra.cutting import extract
from weightops.algebra.loading import load
from weightops.io.replacing import TRAINING
from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.floor.trainer import measure
from weightops.recipes.objectives.exits import Exits
from weightops.recipes.routines.sft import SftRecipe, train
from weightops.rows.encode import encode
from weightops.rows.row import Row

BASE = "smollm2-135m-instruct"
CUT = 18
EXITS = (12, 18, 24, 30)
MEASURED = (6, 12, 18, 24, 30)
TRAIN, TEST = 100, 32
"""Rows of GSM8K's train split to learn, drawn anew for each seed, and of its test split to measure on."""
CHARACTERS = 600
"""Question and answer together have at most so many."""


def run(data: Path, work: Path, seeds: Sequence[int]) -> None:
    """Everything of some seeds; finished models and measurements are not made again."""
    _measure(data, work, "base", 0, BASE)
    for seed in seeds:
        rows = random.Random(f"train/{seed}").sample(_rows(data, "train"), TRAIN)
        cut = work / "cut"
        if not cut.exists():
            extract(BASE, layers=CUT).save(cut)
        for name, base, exits in (("plain", BASE, (30,)), ("soft", BASE, EXITS), ("cut", str(cut), (CUT,))):
            folder = work / f"{name}-{seed}"
            if not folder.exists():
                train(_recipe(data, base, exits, seed), rows, [], folder, title=f"{name}, seed {seed}")
            _measure(data, work, name, seed, str(folder))


def _recipe(data: Path, base: str, exits: tuple[int, ...], seed: int) -> SftRecipe:
    """One exit at the last layer is plain fine-tuning (tests/recipes/objectives/test_exits.py)."""
    training = Training(lr=4e-4, epochs=1, batch=1, schedule="cosine", seed=seed, checkpoint_every=0)
    source = Data(files=(str(_file(data, "train")),))
    return SftRecipe(base, source, objective=Exits(exits=exits), tokens=512, packing=True, training=training)


def _rows(data: Path, split: str) -> list[Row]:
    """Short questions and answers of GSM8K, in the file's order."""
    rows = read_data(_file(data, split), "sorted.md", rename={"prompt": "question", "completion": "answer"})
    return [row for row in rows if len(str(row.prompt)) + len(str(row.completion)) <= CHARACTERS]


def _file(data: Path, split: str) -> Path:
    return data / "math_gsm8k" / f"{split}.jsonl.gz"


def _measure(data: Path, work: Path, name: str, seed: int, model: str) -> None:
    """Add the loss of each exit on the rows held out to the results, if it is not there."""
    if any((line["name"], line["seed"]) == (name, seed) for line in results(work)):
        return
    losses, tokens = losses_by_exit(model, random.Random("test").sample(_rows(data, "test"), TEST), MEASURED)
    log = Path(model) / TRAINING
    line = {
        "name": name,
        "seed": seed,
        "learned": json.loads(log.read_text("utf-8"))["learnt_tokens"] if name != "base" else 0,
        "held_out": tokens,
        "losses": {str(layer): loss for layer, loss in losses.items()},
    }
    add_line(line, work / "results.jsonl")


def losses_by_exit(model: str, rows: Sequence[Row], layers: Sequence[int]) -> tuple[dict[int, float], int]:
    """The mean loss of the answers behind each of some layers that the model has, and how many tokens were judged."""
    loaded, tokenizer = load(model, "bfloat16")
    exits = tuple(layer for layer in layers if layer <= loaded.config.num_hidden_layers)
    held_out = encode(tokenizer, rows, 512)
    measured = measure(loaded, held_out, Exits(exits=exits).ready(loaded, tokenizer, held_out), 4)
    return {layer: measured[f"loss_at_{layer}"] for layer in exits}, sum(map(Exits().learnt_tokens, held_out))


def results(work: Path) -> list[dict[str, Any]]:
    """Every measurement so far."""
    return read_lines(work / "results.jsonl")
