"""``python -m examples.experiments.sorted DATA``: the curve of losses by exit in ``docs/sorted.md``.

Several calls may share the work: give each a ``--seed`` of its own, and write the page when all are done.
"""

from __future__ import annotations

from pathlib import Path

import click

from examples.experiments import steps
from examples.experiments.evidence import write_results

from . import runs
from .page import PAGE


@click.command()
@steps.data_argument
@steps.work_option("sorted-experiment")
@steps.each_seed_option
@steps.page_option
@steps.measured_option
def main(data: Path, work: Path, seeds: tuple[int, ...], writes_page: bool, measured: bool) -> None:
    """Train and measure with the rows in DATA; about ten minutes a seed on two cores.

    Finished models and measurements are kept in --work.
    """
    with steps.errors_in_one_line():
        if not measured:
            runs.run(data, work, seeds)
        if writes_page:
            write_results(runs.results(work), PAGE.results)
            steps.write_page(PAGE)


if __name__ == "__main__":
    main()
