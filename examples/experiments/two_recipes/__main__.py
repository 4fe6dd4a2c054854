"""``python -m examples.experiments.two_recipes DATA``: run everything behind ``docs/two-recipes.md``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from weightops.errors import WeightopsError

from . import skill_page, skill_runs


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), default="two-recipes", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds.")
@click.option("--minutes", type=float, default=float("inf"), help="Stop after the run in which they are over.")
@click.option("--page/--no-page", "writes", default=True, help="Write the page when all is measured.")
def main(data: Path, work: Path, seeds: int, minutes: float, writes: bool) -> None:
    """Train a model on two skills in DATA, merge, and measure what is left of each; minutes for each seed.

    What is finished is kept in --work.
    """
    try:
        experiment = skill_runs.Experiment(data, work)
        if not experiment.run(seeds, time.monotonic() + 60 * minutes):
            sys.exit("Not finished yet. Run the same command again to continue.")
        if writes:
            skill_runs.gather(experiment, skill_page.RESULTS)
            skill_page.write(skill_page.load())
            click.echo(f"wrote {skill_page.PAGE}")
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


if __name__ == "__main__":
    main()
