"""What experiments share while they run: commands as a user would type them, and files of JSON lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from weightops.cli import main as command_line


def weightops(*words: object) -> None:
    """Run a command in this process, and print it as it can be typed."""
    arguments = [str(word) for word in words]
    click.echo(shlex.join(["weightops", *arguments]), err=True)
    command_line.main(["--quiet", *arguments], prog_name="weightops", standalone_mode=False)


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
