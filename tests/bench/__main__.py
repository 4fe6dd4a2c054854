"""``python -m tests.bench``: run the benchmarks, print their tables, and write ``docs/benchmarks.md``.

A benchmark is a module or a value with ``NAME``, ``SIZES`` and ``bench(sizes, repeats, place, first=...) -> Section``; to add one,
name it in :data:`BENCHES`.
"""

from __future__ import annotations

import json
import sys

import click

from weightops.errors import WeightopsError

from . import adapters, compose, exits, extract, merge, sparse, token_objectives
from .models import SHAPES, workplace
from .report import PAGE, write

SIZES = (*SHAPES, *sparse.LAYER.SIZES, *sparse.MODEL.SIZES)
BENCHES = {
    module.NAME: module
    for module in (compose, merge, extract, adapters, exits, sparse.LAYER, sparse.MODEL, token_objectives)
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option(
    "--sizes",
    help=f"Of {','.join(SIZES)}, with commas between.  [default: each benchmark's own]",
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--first/--no-first", default=True, help="Measure the first run, which compiles the kernels.")
@click.option(
    "--methods", help="Of the merge benchmark, with commas between; others stay as they were measured before."
)
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def main(
    names: tuple[str, ...], sizes: str | None, repeats: int, first: bool, methods: str | None, as_json: bool
) -> None:
    """Run the benchmarks NAMES, by default all.

    The page in docs/ is written where all of a benchmark's sizes were run. Models lie in $WEIGHTOPS_BENCH_DIR, or among
    the temporary files, for the next run.
    """
    chosen = sizes.split(",") if sizes else None
    if unknown := set(methods.split(",") if methods else ()) - {method.name for method in merge.METHODS}:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; see tests/bench/merge.py", param_hint="--methods")
    if unknown := set(chosen or ()) - set(SIZES):
        known = ", ".join(SIZES)
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known are {known}", param_hint="--sizes")
    for module in (BENCHES[name] for name in names or BENCHES):
        try:
            only = {"methods": methods.split(",")} if methods and module is merge else {}
            section = module.bench(chosen or module.SIZES, repeats, workplace(), first=first, **only)
        except (WeightopsError, RuntimeError) as error:
            sys.exit(f"error: {error}")
        click.echo(json.dumps(section.json()) if as_json else section.markdown())
        if first and set(module.SIZES) <= set(chosen or module.SIZES):
            write(section)
            click.echo(f"wrote {PAGE.parent.name}/{PAGE.name}", err=True)


if __name__ == "__main__":
    main()
