"""``python -m examples.experiments.guard DATA``: run everything behind ``docs/guard.md``, and write its figures."""

from __future__ import annotations

import json
from pathlib import Path

import click

from examples.experiments import steps

from . import page, runs, speed


@click.command()
@steps.data_argument
@steps.work_option("guard-experiment")
@steps.seeds_option
def main(data: Path, work: Path, seeds: int) -> None:
    """Train, compose and measure with the requests in DATA; hours on two cores.

    Finished models and measurements are kept in --work; remove a folder there to have it made again.
    """
    chosen = range(seeds)
    with steps.errors_in_one_line():
        runs.prepare(data, work, chosen)
        runs.run(work, chosen)
        measure_speed(work)
        page.write(work, chosen)
    click.echo(f"wrote {page.PAGE}")


def measure_speed(work: Path) -> None:
    """Time a guard on the test texts; the machine should have nothing else to do."""
    file = work / "speed.json"
    if not file.exists():
        texts = [row["text"] for row in steps.read_lines(work / "test.jsonl")]
        file.write_text(json.dumps(speed.measure(work / "prefix-0", texts), indent=2), "utf-8")


if __name__ == "__main__":
    main()
