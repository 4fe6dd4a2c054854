"""What examples and experiments share: their command lines, the commands they run, and files of JSON lines."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from weightops.cli import main as command_line
from weightops.errors import WeightopsError
from weightops.rows.reader import read_rows
from weightops.rows.row import Row

from .evidence import Page

UNFINISHED = "Not finished yet. Run the same command again to continue."

data_argument = click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
seeds_option = click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Number of seeds."
)
each_seed_option = click.option(
    "--seed", "seeds", type=click.IntRange(min=0), multiple=True, default=(0, 1, 2), show_default=True,
    help="A seed to run. May be repeated.",
)  # fmt: skip
deadline_option = click.option(
    "--minutes", "deadline", type=float, default=float("inf"),
    callback=lambda context, parameter, minutes: time.monotonic() + 60 * minutes,
    help="Stop after the run in which they are over.",
)  # fmt: skip
page_option = click.option("--page/--no-page", "writes_page", default=True, help="Write the page when all is measured.")
measured_option = click.option(
    "--measured", is_flag=True, help="Run nothing; write the page from what is measured already."
)


def work_option(folder: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--work``, with its default."""
    return click.option(
        "--work", type=click.Path(path_type=Path), default=folder, show_default=True,
        help="Folder for models and measurements.",
    )  # fmt: skip


def program(docstring: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command whose ``--help`` is its module's docstring, line by line as it is written."""
    paragraphs = (docstring or "").strip().split("\n\n")
    return click.command(help="\n\n".join(f"\b\n{paragraph}" for paragraph in paragraphs))


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with a line a problem, or one that says how to resume, in place of a traceback."""
    try:
        yield
    except WeightopsError as error:
        sys.exit("\n".join(f"error: {problem}" for problem in error.problems))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the same command again to resume.")


def weightops(*words: object) -> None:
    """Run a command in this process, and print it as it can be typed."""
    arguments = [str(word) for word in words]
    click.echo(shlex.join(["weightops", *arguments]), err=True)
    command_line.main(["--quiet", *arguments], prog_name="weightops", standalone_mode=False)


def weightops_process(*words: object) -> None:
    """Run a command in a process of its own, with all that it prints, as a user would.

    Raises:
        WeightopsError: it failed.
    """
    arguments = [str(word) for word in words]
    print(f"$ weightops {shlex.join(arguments)}", flush=True)
    if subprocess.run([str(Path(sys.executable).with_name("weightops")), *arguments], check=False).returncode:
        raise WeightopsError(f"weightops {arguments[0]}: failed; its message is above")
    print()


def write_page(page: Page) -> None:
    """Write a page from the results that are kept for it, and say so."""
    page.write(page.load())
    click.echo(f"wrote {page.file}")


def read_data(file: Path, page: str, **options: Any) -> list[Row]:
    """The rows of a public data set; options are those of ``read_rows``.

    Raises:
        WeightopsError: it cannot be read; the message names the page of docs/ that says where it is from.
    """
    try:
        return read_rows([file], **options)
    except WeightopsError as error:
        problems = (f"{problem}; docs/{page} says where the data is from" for problem in error.problems)
        raise WeightopsError(*problems) from error


def write_lines(lines: Iterable[Mapping[str, Any]], file: Path) -> Path:
    """Write objects as JSON Lines; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON Lines; none if it is not there."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def add_line(line: Mapping[str, Any], file: Path) -> None:
    """Add a measurement to a file of JSON Lines, and print it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    click.echo(json.dumps(line))
