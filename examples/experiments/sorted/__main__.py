"""``python -m examples.experiments.sorted DATA``: the curve of losses by exit in ``docs/sorted.md``.

Several calls may share the work: give each a ``--seed`` of its own, and write the page when all are done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from weightops.errors import WeightopsError

from . import page, runs


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), default="sorted-experiment", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, default=(0, 1, 2), show_default=True,
              help="A seed to run. May be repeated.")  # fmt: skip
@click.option("--page/--no-page", "writes", default=True, help="Write the page when all is measured.")
@click.option("--measured", is_flag=True, help="Run nothing; write the page from what is measured already.")
def main(data: Path, work: Path, seeds: tuple[int, ...], writes: bool, measured: bool) -> None:
    """Train and measure with the rows in DATA; about ten minutes a seed on two cores.

    Finished models and measurements are kept in --work.
    """
    try:
        if not measured:
            runs.run(data, work, seeds)
        if writes:
            runs.gather(work, page.RESULTS)
            page.write(page.load())
            click.echo(f"wrote {page.PAGE}")
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


if __name__ == "__main__":
    main()
