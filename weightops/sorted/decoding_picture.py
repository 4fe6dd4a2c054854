"""Draws a trial of ways to decode: how fast each is, and which layers chose its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..extras import needed
from .decoding_trial import WayResult

OURS, OTHER_TEXT, THEIRS = "#0072B2", "#D55E00", "#888888"
"""Colour-blind-safe palette (Okabe and Ito)."""


def draw_trial(results: Sequence[WayResult], file: Path, title: str = "") -> Path:
    """Write the picture.

    Args:
        results: What each way did.
        file: File to write; its suffix gives the format.
        title: Title above the picture.

    Returns:
        The file.

    Raises:
        WeightopsError: matplotlib is missing.
    """
    figures = needed("matplotlib.figure", "matplotlib", "train")
    figure: Any = figures.Figure(figsize=(11, 1.6 + 0.32 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(results))
    left.barh(places, [each.speed for each in results], color=[_colour(each) for each in results])
    left.axvline(1, color="#444444", ls="--", lw=1)
    for place, each in enumerate(results):
        kept = "" if each.acceptance is None else f"  {each.acceptance:.0%} kept"
        left.text(each.speed, place, f" {each.speed:.2f}{kept}", va="center", fontsize=8)
    left.set_yticks(places, [each.way.name for each in results], fontsize=8.5)
    left.set(xlabel="speed, plain decoding = 1", xlim=(0, 1.35 * max(each.speed for each in results)))
    left.set_title("blue: same text; orange: another text; grey: transformers", fontsize=9)
    left.invert_yaxis()
    _exits(right, results)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=150)
    return file


def _colour(result: WayResult) -> str:
    if result.way.method is None:
        return THEIRS
    return OURS if result.same == 1 else OTHER_TEXT


def _exits(axes: Any, results: Sequence[WayResult]) -> None:
    """Draw for each way which share of its tokens each number of layers chose."""
    from matplotlib import colormaps

    layers = sorted({layer for each in results for layer in each.exits})
    begun = [0.0] * len(results)
    for index, layer in enumerate(layers):
        shares = [each.exits.get(layer, 0) / max(sum(each.exits.values()), 1) for each in results]
        colour = colormaps["viridis"](index / max(len(layers) - 1, 1))
        axes.barh(range(len(results)), shares, left=begun, color=colour, label=f"{layer} layers")
        begun = [start + share for start, share in zip(begun, shares, strict=True)]
    axes.set(xlabel="share of the tokens", xlim=(0, 1))
    axes.set_title("layers that chose the tokens", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
