"""What the pages of experiments share: values by seed with their intervals, and tables between marks in a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from weightops.errors import WeightopsError

DOCS: Final = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Measured:
    """Values of the seeds that were measured, by seed."""

    values: Mapping[int, float]

    def __sub__(self, other: Measured) -> Measured:
        """The differences of the seeds that both have; a single value counts for every seed."""
        if len(other.values) == 1:
            return Measured({seed: value - next(iter(other.values.values())) for seed, value in self.values.items()})
        return Measured(
            {seed: self.values[seed] - other.values[seed] for seed in sorted(self.values.keys() & other.values)}
        )

    def __truediv__(self, other: Measured) -> Measured:
        """The ratios of the seeds that both have."""
        return Measured(
            {seed: self.values[seed] / other.values[seed] for seed in sorted(self.values.keys() & other.values)}
        )

    @property
    def mean(self) -> float:
        return statistics.mean(self.values.values())

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean, by Student's t; NaN for a single value."""
        from scipy.stats import t

        count = len(self.values)
        if count < 2:
            return float("nan")
        return float(t.ppf(0.975, count - 1)) * statistics.stdev(self.values.values()) / count**0.5


def interval(measured: Measured, digits: int = 3) -> str:
    """The mean and the half-width of its 95 % interval."""
    if len(measured.values) == 1:
        return f"{measured.mean:.{digits}f}"
    return f"{measured.mean:.{digits}f} ± {measured.half_width:.{digits}f}"


def signed(measured: Measured) -> str:
    """A difference; bold where its 95 % interval leaves 0 out, empty where no seed has both."""
    if not measured.values:
        return ""
    if len(measured.values) == 1:
        return f"{measured.mean:+.3f}"
    text = f"{measured.mean:+.3f} ± {measured.half_width:.3f}"
    return f"**{text}**" if abs(measured.mean) > measured.half_width else text


def mean_and_range(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the least and greatest in brackets; empty where nothing was measured."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read_results(file: Path) -> Any:
    """What was measured, as a page shows it."""
    return json.loads(file.read_text("utf-8"))


def write_results(lines: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write measurements to the file that a page is made from, a line each."""
    file.write_text("[\n" + ",\n".join(f"  {json.dumps(line)}" for line in lines) + "\n]\n", "utf-8")


@dataclass(frozen=True)
class Page:
    """A page of the documentation whose tables and pictures show the results of an experiment.

    Attributes:
        file: The page; its pictures are beside it.
        results: What was measured, as the page shows it: no data rows, no weights.
        tables: Works out every table of the page, by its mark.
        pictures: Draws each picture, by its file name.
        read: Reads the file of results.
    """

    file: Path
    results: Path
    tables: Callable[[Any], Mapping[str, str]]
    pictures: Mapping[str, Callable[[Any, Path], None]] = field(default_factory=dict)
    read: Callable[[Path], Any] = read_results

    def load(self) -> Any:
        """The results that the page shows."""
        return self.read(self.results)

    def write(self, results: Any) -> None:
        """Put the tables into the page in place of the earlier ones, and draw the pictures.

        Raises:
            WeightopsError: the page has no marks for a table.
        """
        put_tables(self.tables(results), self.file)
        for name, draw in self.pictures.items():
            draw(results, self.file.with_name(name))


def put_tables(tables: Mapping[str, str], page: Path) -> None:
    """Put tables into a page in place of the earlier ones, each between its marks.

    Raises:
        WeightopsError: the page has no marks for a table; it is then unchanged.
    """
    text = page.read_text("utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise WeightopsError(f"{page}: has no marks <!-- {name} --> and <!-- end of {name} -->; put them in")
        before, _, after = text.partition(begin)
        text = before + begin + table + end + after.partition(end)[2]
    page.write_text(text, "utf-8")
