"""``python -m examples.experiments.two_recipes DATA``: run everything behind ``docs/two-recipes.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from examples.experiments import steps
from examples.experiments.evidence import write_results

from .skill_page import PAGE
from .skill_runs import Experiment


@click.command()
@steps.data_argument
@steps.work_option("two-recipes")
@steps.seeds_option
@steps.deadline_option
@steps.page_option
def main(data: Path, work: Path, seeds: int, deadline: float, writes_page: bool) -> None:
    """Train a model on two skills in DATA, merge, and measure what is left of each; minutes for each seed.

    What is finished is kept in --work.
    """
    with steps.errors_in_one_line():
        experiment = Experiment(data, work)
        if not experiment.run(seeds, deadline):
            sys.exit(steps.UNFINISHED)
        if writes_page:
            write_results(experiment.results(), PAGE.results)
            steps.write_page(PAGE)


if __name__ == "__main__":
    main()
