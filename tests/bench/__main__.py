"""``python -m tests.bench``: run the benchmarks, print their tables, and write ``docs/benchmarks.md``.

A benchmark is a module or a value with ``NAME``, ``SIZES`` and ``bench(sizes, repeats, place, first=...) -> Section``; to add one,
name it in :data:`BENCHES`.
"""

from __future__ import annotations

import json
import sys

import click

from weightops.errors import WeightopsError

from . import adapters, compose, exits, merge, sparse
from .models import SHAPES, workplace
from .report import PAGE, write

SIZES = (*SHAPES, *sparse.LAYER.SIZES, *sparse.MODEL.SIZES)
BENCHES = {module.NAME: module for module in (compose, merge, adapters, exits, sparse.LAYER, sparse.MODEL)}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option(
    "--sizes",
    help=f"Of {','.join(SIZES)}, with commas between.  [default: each benchmark's own]",
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--first/--no-first", default=True, help="Measure the first run, which compiles the kernels.")
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def main(names: tuple[str, ...], sizes: str | None, repeats: int, first: bool, as_json: bool) -> None:
    """Run the benchmarks NAMES, by default all.

    The page in docs/ is written where all of a benchmark's sizes were run. Models lie in $WEIGHTOPS_BENCH_DIR, or among
    the temporary files, for the next run.
    """
    chosen = sizes.split(",") if sizes else None
    if unknown := set(chosen or ()) - set(SIZES):
        known = ", ".join(SIZES)
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known are {known}", param_hint="--sizes")
    for module in (BENCHES[name] for name in names or BENCHES):
        try:
            section = module.bench(chosen or module.SIZES, repeats, workplace(), first=first)
        except (WeightopsError, RuntimeError) as error:
            sys.exit(f"error: {error}")
        click.echo(json.dumps(section.json()) if as_json else section.markdown())
        if first and set(module.SIZES) <= set(chosen or module.SIZES):
            write(section)
            click.echo(f"wrote {PAGE.parent.name}/{PAGE.name}", err=True)


if __name__ == "__main__":
    main()
