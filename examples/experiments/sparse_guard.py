"""What a sparse guard vector keeps of the demo's guard: ``python -m examples.experiments.sparse_guard [DENSITY ...]``.

For each density the largest entries of guard - base are kept, and, as a control, as many entries of each tensor at
random positions with their own values. Each is judged on the demo's English test prompts, on its base and composed with
the demo's target: F1 at a threshold of 0.5, and the area under the ROC curve, which needs no threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from examples.demo import BASE, HERE, auc, f1, prompts
from examples.experiments.steps import errors_in_one_line, program
from weightops.algebra.checkpoint import Checkpoint, Delta
from weightops.algebra.opening import open_all
from weightops.engine import kernels
from weightops.guard.card import GuardCard
from weightops.guard.compose import scope_of
from weightops.guard.judge import judge
from weightops.io.sparse_delta import DeltaMetadata
from weightops.sparse.delta_file import Entries, load_entries, write_delta
from weightops.sparse.reverting import applied, open_delta
from weightops.sparse.top_entries import sparse_part

DENSITIES = (0.001, 0.01, 0.05, 0.1)


@program(__doc__)
@click.argument("densities", metavar="[DENSITY]...", type=float, nargs=-1)
def main(densities: tuple[float, ...]) -> None:
    """Judge the guards of the densities given, or of the usual ones."""
    with errors_in_one_line():
        judge_all(densities or DENSITIES)


def judge_all(densities: Iterable[float]) -> None:
    """Judge every guard and print the table."""
    base, guard, target = open_all([BASE, f"{BASE}+{HERE / 'guard'}", f"{BASE}+{HERE / 'target'}"])
    vector = (guard - base).only(scope_of((), ()).applies)
    card, rows = GuardCard.read(HERE / "guard"), prompts("en", "test")
    print("| entries kept | file | guard: F1 | AUC | composed: F1 | AUC |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in (("all", None), *deltas(base, vector, densities, Path(folder))):
            change = vector if file is None else applied(BASE, file) - base
            judged = [measured(model + change, card, rows) for model in (base, target)]
            size = "-" if file is None else f"{file.stat().st_size / 1e6:.1f} MB"
            cells = " | ".join(f"{f1(each):.2f} | {auc(each):.2f}" for each in judged)
            print(f"| {name} | {size} | {cells} |", flush=True)


def deltas(base: Checkpoint, vector: Delta, densities: Iterable[float], folder: Path) -> Iterator[tuple[str, Path]]:
    """For each density the largest entries of the guard vector, then as many at random."""
    for density in densities:
        largest = sparse_part(base, vector, density, "per-tensor", made={}).save(folder / f"{density}.safetensors")
        yield f"{density:.1%}, largest", largest
        entries = (at_random(vector, load_entries(t)) for t in open_delta(largest).tensors.values())
        yield f"{density:.1%}, random", write_delta(folder / f"r{density}.safetensors", entries, DeltaMetadata("add"))


def at_random(vector: Delta, entries: Entries) -> Entries:
    """As many entries of a tensor at random positions, with the values that the vector has there."""
    values = vector.tensor(entries.name).reshape(-1).numpy()
    draw = np.random.default_rng(0)
    where = np.sort(draw.choice(len(values), size=len(entries.indices), replace=False))
    raw = kernels.narrow(values[where], entries.values_dtype)
    return replace(entries, indices=where, values=raw, originals=None)


def measured(model: Checkpoint, card: GuardCard, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test prompts with the probability that each is unsafe."""
    answers = judge(model, [row["text"] for row in rows], card)
    return [row | {"unsafe": float(answer)} for row, answer in zip(rows, answers, strict=True)]


if __name__ == "__main__":
    main()
