"""``python -m examples.experiments.guard DATA``: run everything behind ``docs/guard.md``, and write its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from weightops.errors import WeightopsError

from . import page, runs, speed


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--work", type=click.Path(path_type=Path), default="guard-experiment", show_default=True,
              help="Folder for models and measurements.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds.")
def main(data: Path, work: Path, seeds: int) -> None:
    """Train, compose and measure with the requests in DATA; hours on two cores.

    Finished models and measurements are kept in --work; remove a folder there to have it made again.
    """
    chosen = range(seeds)
    try:
        runs.prepare(data, work, chosen)
        runs.run(work, chosen)
        measure_speed(work)
        page.write(work, chosen)
    except WeightopsError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")
    click.echo(f"wrote {page.PAGE}")


def measure_speed(work: Path) -> None:
    """Time a guard on the test texts; the machine should have nothing else to do."""
    file = work / "speed.json"
    if not file.exists():
        texts = [json.loads(line)["text"] for line in (work / "test.jsonl").read_text("utf-8").splitlines()]
        file.write_text(json.dumps(speed.measure(work / "prefix-0", texts), indent=2), "utf-8")


if __name__ == "__main__":
    main()
