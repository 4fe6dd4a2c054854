"""``python -m examples.experiments.disperse DATA``: run everything behind ``docs/disperse-then-merge.md``.

Several processes may share the work: give each a ``--seed`` of its own, and write the page when all are done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from weightops.errors import WeightopsError

from . import page, runs


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--embed", required=True, help="Encoder for k-means and conflict: a folder with all-MiniLM-L6-v2.")
@click.option("--work", type=click.Path(path_type=Path), default="disperse-experiment", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, default=(0, 1, 2), show_default=True,
              help="A seed to run. May be repeated.")  # fmt: skip
@click.option("--page/--no-page", "writes", default=True, help="Write the page when all is measured.")
@click.option("--measured", is_flag=True, help="Run nothing; write the page from what is measured already.")
def main(data: Path, embed: str, work: Path, seeds: tuple[int, ...], writes: bool, measured: bool) -> None:
    """Train, merge and measure with the rows in DATA; an hour or more on two cores.

    Finished models and measurements are kept in --work.
    """
    try:
        if not measured:
            runs.run(data, work, seeds, embed)
        if writes:
            runs.gather(data, work, seeds, page.RESULTS)
            page.write(page.load())
            click.echo(f"wrote {page.PAGE}")
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


if __name__ == "__main__":
    main()
