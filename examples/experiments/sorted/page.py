"""The evidence in ``docs/sorted.md``: the losses by exit, between two marks in the page, and as a picture beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightops.errors import WeightopsError

PAGE = Path(__file__).parents[3] / "docs" / "sorted.md"
RESULTS = Path(__file__).with_name("results.json")
"""What was measured, as the page shows it: no data rows, no weights."""
PICTURE = "sorted-losses.png"
LABELS: Mapping[str, tuple[str, str]] = {
    "base": ("before training", "#444444"),
    "plain": ("plain fine-tuning", "#D55E00"),
    "soft": ("SoFT, exits 12, 18, 24 and 30", "#0072B2"),
    "cut": ("first 18 layers, cut, then fine-tuned", "#009E73"),
}
"""What was measured, how the page calls it, and its colour, told apart by every eye (Okabe and Ito)."""
BEGIN, END = "<!-- losses by exit -->\n", "<!-- end of losses by exit -->"

Lines = Sequence[Mapping[str, Any]]


def load(file: Path = RESULTS) -> Lines:
    """The measurements that the page shows."""
    lines: Lines = json.loads(file.read_text("utf-8"))
    return lines


def write(lines: Lines, page: Path = PAGE) -> None:
    """Put the table into the page in place of the earlier one, and draw the picture.

    Raises:
        WeightopsError: the page has no marks for the table.
    """
    text = page.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise WeightopsError(f"{page}: has no marks {BEGIN.strip()} and {END}; put them in")
    before, _, after = text.partition(BEGIN)
    page.write_text(before + BEGIN + table(lines) + END + after.partition(END)[2], "utf-8")
    draw(lines, page.with_name(PICTURE))


def table(lines: Lines) -> str:
    """The losses at each exit, the mean of the seeds with the smallest and the largest."""
    exits = _exits(lines)
    head = ["model", "seeds", "tokens learned", *(f"exit {layer}" for layer in exits)]
    rows = [head, ["---"] * len(head)]
    for name, (label, _) in LABELS.items():
        each = _of(lines, name)
        if each:
            learned = sorted(line["learned"] for line in each)
            tokens = f"{learned[0]:,}" if learned[0] == learned[-1] else f"{learned[0]:,} to {learned[-1]:,}"
            rows.append([label, str(len(each)), tokens, *(_cell(_losses(each, layer)) for layer in exits)])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def draw(lines: Lines, file: Path) -> None:
    """Loss against exit, a curve for each model, the range of the seeds shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for name, (label, colour) in LABELS.items():
        each = _of(lines, name)
        exits = _exits(each)
        values = [_losses(each, layer) for layer in exits]
        if values:
            axes.plot(exits, [statistics.mean(at) for at in values], color=colour, marker="o", ms=4, label=label)
            axes.fill_between(exits, [min(at) for at in values], [max(at) for at in values], color=colour, alpha=0.2)
    axes.set(xlabel="exit (layers)", ylabel="loss on held-out answers", xticks=_exits(lines), yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def _of(lines: Lines, name: str) -> Lines:
    return [line for line in lines if line["name"] == name]


def _exits(lines: Lines) -> list[int]:
    return sorted({int(layer) for line in lines for layer in line["losses"]})


def _losses(lines: Lines, layer: int) -> list[float]:
    return [line["losses"][str(layer)] for line in lines if str(layer) in line["losses"]]


def _cell(losses: Sequence[float]) -> str:
    if not losses:
        return ""
    mean = f"{statistics.mean(losses):.3f}"
    return mean if len(losses) == 1 else f"{mean} ({min(losses):.3f} to {max(losses):.3f})"
