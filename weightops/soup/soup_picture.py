"""The picture of a search: the score of each candidate in order, the best so far, and the controls."""

from __future__ import annotations

import io
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..extras import needed

if TYPE_CHECKING:
    from .chosen import Soup

CANDIDATE, BEST, CONTROL, INK = "#56B4E9", "#D55E00", "#009E73", "#444444"
"""Colour-blind-safe palette (Okabe and Ito)."""
_NAMED = 6
"""Most controls that are named by themselves."""


def draw_soup(soup: Soup) -> bytes:
    """The picture as PNG: in the order of judging, or over the candidates' own axis where they have one.

    Raises:
        WeightopsError: matplotlib is missing.
    """
    figures = needed("matplotlib.figure", "matplotlib", "train")
    figure: Any = figures.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    metric = soup.plan.metric
    assert metric is not None, "only judged candidates can be drawn"
    if any(one.candidate.at for one in soup.scored):
        _curve(axes, soup)
    else:
        _search(axes, soup, higher=metric.higher_is_better)
    for one in soup.controls:
        if not one.dropped:
            _control(axes, one.candidate.label, one.score, named=len(soup.controls) <= _NAMED)
    better = "higher" if metric.higher_is_better else "lower"
    axes.set_ylabel(f"{metric.words} ({better} is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _curve(axes: Any, soup: Soup) -> None:
    """The scores over the candidates' axis, and the chosen one."""
    points = sorted((one.candidate.at[1], one.score) for one in soup.scored if one.candidate.at and not one.dropped)
    axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=CANDIDATE, label="candidate")
    chosen = [one for one in soup.scored if one.candidate.at and one.score == soup.score]
    if chosen and chosen[0].candidate.at:
        axes.plot(chosen[0].candidate.at[1], soup.score, ls="", marker="o", ms=8, color=BEST, label="chosen")
        axes.set_xlabel(chosen[0].candidate.at[0])


def _search(axes: Any, soup: Soup, *, higher: bool) -> None:
    """The score of each candidate in order, and the best so far."""
    controls = {one.candidate.text for one in soup.controls}
    judged = [(place, one) for place, one in enumerate(soup.scored, 1) if not one.dropped]
    tried = [(place, one.score) for place, one in judged if one.candidate.text not in controls]
    if tried:
        axes.plot(*zip(*tried, strict=True), ls="", marker="o", ms=4, color=CANDIDATE, label="candidate")
    ahead = accumulate((one.score for _, one in judged), max if higher else min)
    places = [place for place, _ in judged]
    axes.plot(places, list(ahead), drawstyle="steps-post", color=BEST, lw=1.4, label="best so far")
    axes.set_xlabel("candidates judged")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _control(axes: Any, label: str, score: float, *, named: bool) -> None:
    """A dashed line for a model alone or the plain mean, its name at the right end."""
    mean = label.startswith("mean of")
    axes.axhline(score, color=INK if mean else CONTROL, ls="--" if mean else ":", lw=1)
    if named or mean:
        shown = label if len(label) < 30 else f"...{label[-26:]}"
        axes.annotate(
            shown, (1, score), xycoords=("axes fraction", "data"), fontsize=7.5, ha="right", va="bottom", color=INK
        )
