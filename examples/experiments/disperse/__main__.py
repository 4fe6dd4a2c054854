"""``python -m examples.experiments.disperse DATA``: run everything behind ``docs/disperse-then-merge.md``.

Several processes may share the work: give each a ``--seed`` of its own, and write the page when all are done.
"""

from __future__ import annotations

from pathlib import Path

import click

from examples.experiments import steps

from . import runs
from .page import PAGE


@click.command()
@steps.data_argument
@click.option("--embed", required=True, help="Encoder for k-means and conflict: a folder with all-MiniLM-L6-v2.")
@steps.work_option("disperse-experiment")
@steps.each_seed_option
@steps.page_option
@steps.measured_option
def main(data: Path, embed: str, work: Path, seeds: tuple[int, ...], writes_page: bool, measured: bool) -> None:
    """Train, merge and measure with the rows in DATA; an hour or more on two cores.

    Finished models and measurements are kept in --work.
    """
    with steps.errors_in_one_line():
        if not measured:
            runs.run(data, work, seeds, embed)
        if writes_page:
            runs.gather(data, work, seeds, PAGE.results)
            steps.write_page(PAGE)


if __name__ == "__main__":
    main()
