"""What the pages of experiments share: values by seed with their intervals, and tables between two marks in a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightops.errors import WeightopsError


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


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
