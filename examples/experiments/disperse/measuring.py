"""Measuring a change: its norm, and the loss of base + change on held-out rows, patched into one loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from examples.experiments.steps import add_line, read_lines, write_lines
from weightops.algebra.checkpoint import Delta
from weightops.algebra.loading import load
from weightops.recipes.floor.components import component
from weightops.recipes.floor.trainer import measure
from weightops.rows.encode import encode
from weightops.rows.reader import read_rows

from . import rows

BATCH = 8


class PatchedModel:
    """One loaded model, the held-out rows, and the file of results: a line of JSON a measurement."""

    def __init__(self, data: Path, work: Path, base: str) -> None:
        self.file = work / "results.jsonl"
        self.model, self.tokenizer = load(base, "bfloat16")
        self.objective = component("objectives", "next_token")().ready(self.model, self.tokenizer, ())
        self.choice = write_lines(rows.choice(data), work / "held-out" / "choice.jsonl")
        measured = {"task": rows.task(data), **{name: rows.rest(data, name) for name in rows.REST}}
        files = {name: write_lines(held, work / "held-out" / f"{name}.jsonl") for name, held in measured.items()}
        self.sets = {name: self._encoded(file) for name, file in files.items()}

    def measure(self, seed: int, name: str, change: Delta, **notes: Any) -> None:
        """Add the norm and the losses of a change to the results, if they are not there."""
        if self.has(seed, name):
            return
        norm, losses = self._losses(change)
        line = {"seed": seed, "name": name, "norm": norm, "losses": losses, **notes}
        add_line(line, self.file)

    def has(self, seed: int, name: str) -> bool:
        """Whether the results hold a measurement."""
        return any((line["seed"], line["name"]) == (seed, name) for line in read_lines(self.file))

    def norm(self, seed: int, name: str) -> float:
        """The norm of a change that was measured."""
        return next(
            float(line["norm"]) for line in read_lines(self.file) if (line["seed"], line["name"]) == (seed, name)
        )

    def answer_tokens(self) -> dict[str, int]:
        """Tokens whose loss is measured, in each set of held-out rows."""
        sets = {**self.sets, "choice": self._encoded(self.choice)}
        return {name: sum(map(self.objective.learnt_tokens, held)) for name, held in sets.items()}

    def _losses(self, change: Delta) -> tuple[float, dict[str, float]]:
        """The norm of a change, and losses of the patched model; the model is restored exactly."""
        parameters = dict(self.model.named_parameters())
        before = {name: parameters[name].detach().clone() for name in change.names}
        squares = 0.0
        with torch.no_grad():
            for name, origin in before.items():
                moved = change.tensor(name)
                squares += float(moved.double().square().sum())
                parameters[name].copy_(origin.float() + moved)
            losses = {
                name: measure(self.model, held, self.objective, BATCH)["loss"] for name, held in self.sets.items()
            }
            for name, origin in before.items():
                parameters[name].copy_(origin)
        return squares**0.5, losses

    def _encoded(self, file: Path) -> list[dict[str, Any]]:
        encoded = encode(self.tokenizer, read_rows([file]), 1024)
        return sorted(encoded, key=lambda row: len(row["input_ids"]))
