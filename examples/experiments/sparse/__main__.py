"""``python -m examples.experiments.sparse DATA``: run everything behind the table of ``docs/sparse-training.md``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from weightops.errors import WeightopsError

from . import sparse_page, sparse_runs


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), default="sparse-experiment", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds.")
@click.option("--minutes", type=float, default=float("inf"), help="Stop after the run in which they are over.")
@click.option("--measured", is_flag=True, help="Run nothing; write the page from what is measured already.")
def main(data: Path, work: Path, seeds: int, minutes: float, measured: bool) -> None:
    """Tune a model on short problems of GSM8K in DATA by nine ways; about an hour on one core.

    What is finished is kept in --work. The page is written when everything is done.
    """
    try:
        experiment = sparse_runs.Experiment(data, work, seeds)
        if not measured and not experiment.run(time.monotonic() + 60 * minutes):
            sys.exit("Not finished yet. Run the same command again to continue.")
        sparse_runs.gather(experiment, sparse_page.RESULTS)
        sparse_page.write(sparse_page.load())
        click.echo(f"wrote {sparse_page.PAGE}")
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


if __name__ == "__main__":
    main()
