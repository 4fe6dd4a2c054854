"""What commands print: tables, JSON, sizes, and the command to run next."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import textwrap
from typing import Any

import click

#: Keys of ``click.Context.meta``, which a command shares with the groups above it.
JSON = "weightops.json"
QUIET = "weightops.quiet"

_GAP = "  "
_NARROWEST = 8


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_next(*commands: list[str], program: str = "weightops") -> None:
    """Suggest commands to run next, on stderr; nothing with ``--json`` or ``--quiet``.

    Args:
        commands: The words of each after the program's name, unquoted.
        program: What they are arguments of.
    """
    meta = click.get_current_context().meta
    if meta.get(JSON) or meta.get(QUIET):
        return
    for words in commands:
        click.echo(f"next: {shlex.join([program, *words])}", err=True)


def human(size: float) -> str:
    """Bytes as people read them.

    >>> human(1_234_567_890)
    '1.23 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; none where stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(head: list[str], rows: list[list[str]], *, left: bool = False, width: int | None = None) -> str:
    """Aligned columns: the first to the left, the others to the right, or all ``left``.

    Args:
        head: Column titles.
        rows: Cells, as many in each row as there are titles.
        left: Align every column to the left.
        width: Most characters in a line; the widest columns are wrapped to it. By default that of the terminal, and
            no limit where the output goes to a file or a pipe.

    >>> print(table(["name", "count"], [["attention", "8"], ["mlp", "12"]]))
    name       count
    attention      8
    mlp           12
    """
    lines = [head, *rows]
    widths = _fitted(list(zip(*lines, strict=True)), width or terminal_width())
    return "\n".join(_GAP.join(cells).rstrip() for line in lines for cells in _wrapped(line, widths, left))


def _fitted(columns: list[tuple[str, ...]], limit: int | None) -> list[int]:
    """Column widths that fit a line; the widest shrink first, to their longest word, and only then inside words."""
    widths = [max(map(len, column)) for column in columns]
    for words in (True, False):
        least = [max((len(word) for cell in column for word in cell.split()), default=0) if words else _NARROWEST
                 for column in columns]  # fmt: skip
        while limit is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > limit:
            spare = [max(width - narrowest, 0) and width for width, narrowest in zip(widths, least, strict=True)]
            if not any(spare):
                break
            widths[spare.index(max(spare))] -= 1
    return widths


def _wrapped(line: list[str], widths: list[int], left: bool) -> list[list[str]]:
    """The printed lines of one row, each with a padded cell for every column."""
    cells = [
        textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]
        for cell, width in zip(line, widths, strict=True)
    ]
    return [
        [
            (cell[place] if place < len(cell) else "").ljust(width)
            if left or column == 0
            else (cell[place] if place < len(cell) else "").rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        for place in range(max(map(len, cells)))
    ]
