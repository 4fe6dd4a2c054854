"""``python -m examples.experiments.sparse DATA``: sparse training, LoRA and full training compared, as a table."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from weightops.errors import WeightopsError

from . import sparse_runs
from .ways import WAYS

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantile of Student's t, by the number of seeds."""


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), default="sparse-experiment", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 5), default=3, show_default=True, help="Number of seeds.")
@click.option("--rows", default=1024, show_default=True, help="Rows to train on.")
@click.option("--tests", default=256, show_default=True, help="Rows to measure the loss on.")
@click.option("--answers", default=50, show_default=True, help="Test questions that are answered.")
@click.option("--epochs", default=2, show_default=True, help="Times through the rows.")
@click.option("--only", multiple=True, type=click.Choice([way.name for way in WAYS]), help="These ways alone.")
def main(
    data: Path, work: Path, seeds: int, rows: int, tests: int, answers: int, epochs: int, only: tuple[str, ...]
) -> None:
    """Tune a model on GSM8K's training rows in DATA by nine ways, seed by seed; hours on two cores.

    What is finished is kept in --work, and the table is printed after each seed. Give the same command to resume.
    """
    ways = [way for way in WAYS if not only or way.name in only]
    try:
        sparse_runs.prepare(data, work, rows, tests)
        for seed in range(seeds):
            for way in ways:
                sparse_runs.run(work, way, seed, epochs, answers)
            click.echo(table(work, range(seed + 1)))
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


def table(work: Path, seeds: Sequence[int]) -> str:
    """A row for each way: rate, loss and right answers, the mean with its 95 % interval over the seeds."""
    measured = sparse_runs.results(work, WAYS, seeds)
    rows = [
        f"| {way.title} | {runs[0]['rate']:g} | {_interval([r['loss'] for r in runs])} | {_share(runs)} | {len(runs)} |"
        for way in WAYS
        if (runs := measured[way.name])
    ]
    return "\n".join(["| way | lr | test loss | right answers | seeds |", "|---|---:|---:|---:|---:|", *rows])


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def _share(runs: Sequence[dict[str, Any]]) -> str:
    return f"{sum(run['right'] for run in runs)} of {sum(run['asked'] for run in runs)}"


if __name__ == "__main__":
    main()
