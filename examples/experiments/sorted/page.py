"""The evidence in ``docs/sorted.md``: the losses by exit, between two marks in the page, and as a picture beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.experiments.evidence import DOCS, Page, grid, mean_and_range

LABELS: Mapping[str, tuple[str, str]] = {
    "base": ("before training", "#444444"),
    "plain": ("plain fine-tuning", "#D55E00"),
    "soft": ("SoFT, exits 12, 18, 24 and 30", "#0072B2"),
    "cut": ("first 18 layers, cut, then fine-tuned", "#009E73"),
}
"""What was measured, how the page calls it, and its colour, told apart by every eye (Okabe and Ito)."""

Lines = Sequence[Mapping[str, Any]]


def tables(lines: Lines) -> dict[str, str]:
    """The losses at each exit, the mean of the seeds with the smallest and the largest."""
    exits = _exits(lines)
    head = ["model", "seeds", "tokens learned", *(f"exit {layer}" for layer in exits)]
    rows = []
    for name, (label, _) in LABELS.items():
        each = _of(lines, name)
        if each:
            learned = sorted(line["learned"] for line in each)
            tokens = f"{learned[0]:,}" if learned[0] == learned[-1] else f"{learned[0]:,} to {learned[-1]:,}"
            rows.append([label, str(len(each)), tokens, *(mean_and_range(_losses(each, layer)) for layer in exits)])
    return {"losses by exit": grid(head, rows)}


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


PAGE = Page(DOCS / "sorted.md", Path(__file__).with_name("results.json"), tables, {"sorted-losses.png": draw})


def _of(lines: Lines, name: str) -> Lines:
    return [line for line in lines if line["name"] == name]


def _exits(lines: Lines) -> list[int]:
    return sorted({int(layer) for line in lines for layer in line["losses"]})


def _losses(lines: Lines, layer: int) -> list[float]:
    return [line["losses"][str(layer)] for line in lines if str(layer) in line["losses"]]
