"""What was measured, as text: printed, and kept in ``docs/benchmarks.md``, a section for each benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .measure import Spread

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by `make bench`, which measures everything on the machine at hand; do not edit. Ratios compare what ran side by
side in one run, repeat by repeat, and carry over to other machines better than seconds do. Values are least / median /
greatest over the repeats.
"""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Target:
    """What was asked, what was measured, and whether that is enough."""

    what: str
    bound: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Section:
    """One benchmark's part of the page.

    Attributes:
        name: The benchmark's name on the command line.
        conditions: Machine, date, versions, repeats; a line each.
        figures: The same measurements as JSON values, for a program.
    """

    name: str
    title: str
    conditions: tuple[str, ...]
    targets: tuple[Target, ...]
    tables: tuple[Table, ...]
    figures: dict[str, Any]

    def markdown(self) -> str:
        """The section as Markdown."""
        verdicts = [(t.what, t.bound, t.measured, "yes" if t.met else "**no**") for t in self.targets]
        parts = [f"## {self.title}", "\n".join(f"- {line}" for line in self.conditions)]
        if verdicts:
            parts.append(grid(("target", "at most", "measured", "met"), verdicts))
        for table in self.tables:
            parts += [f"### {table.title}", *([table.note] if table.note else []), grid(table.head, table.rows)]
        return "\n\n".join(parts) + "\n"

    def json(self) -> dict[str, Any]:
        """The section as JSON values."""
        return {"targets": [asdict(target) for target in self.targets], **self.figures}


def write(section: Section, page: Path = PAGE) -> None:
    """Put a section into the page in place of its earlier self, or at the end; other sections stay."""
    page.parent.mkdir(exist_ok=True)
    text = page.read_text("utf-8") if page.exists() else _HEAD
    begin, end = f"<!-- {section.name} -->\n", f"<!-- end of {section.name} -->\n"
    block = begin + section.markdown() + end
    match = re.search(re.escape(begin) + ".*?" + re.escape(end), text, re.DOTALL)
    text = text[: match.start()] + block + text[match.end() :] if match else f"{text}\n{block}"
    page.write_text(text, "utf-8")


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns in line."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [head, rule, *rows]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def seconds(spread: Spread) -> str:
    """Seconds, least / median / greatest."""
    return " / ".join(f"{value:.2f}" for value in (spread.least, spread.median, spread.most)) + " s"


def times(spread: Spread) -> str:
    """A ratio, least / median / greatest."""
    return " / ".join(f"{value:.2f}" for value in (spread.least, spread.median, spread.most)) + " x"


def megabytes(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:.0f} MB"
