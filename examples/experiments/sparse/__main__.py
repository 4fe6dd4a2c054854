"""``python -m examples.experiments.sparse DATA``: run everything behind the table of ``docs/sparse-training.md``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from examples.experiments import steps
from examples.experiments.evidence import write_results

from .sparse_page import PAGE
from .sparse_runs import Experiment


@click.command()
@steps.data_argument
@steps.work_option("sparse-experiment")
@steps.seeds_option
@steps.deadline_option
@steps.measured_option
def main(data: Path, work: Path, seeds: int, deadline: float, measured: bool) -> None:
    """Tune a model on short problems of GSM8K in DATA by nine ways; about an hour on one core.

    What is finished is kept in --work. The page is written when everything is done.
    """
    with steps.errors_in_one_line():
        experiment = Experiment(data, work, seeds)
        if not measured and not experiment.run(deadline):
            sys.exit(steps.UNFINISHED)
        write_results(experiment.results(), PAGE.results)
        steps.write_page(PAGE)


if __name__ == "__main__":
    main()
