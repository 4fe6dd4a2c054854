"""Draws an evaluation: F1 and some probabilities as texts arrive, or the probabilities of whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..extras import needed
from .evaluate import Evaluation

SAFE, UNSAFE, ALONE, STREAMING, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#444444"
"""Colour-blind-safe palette (Okabe and Ito)."""


def chosen_rows(evaluation: Evaluation, each: int = 3) -> list[int]:
    """Indices of the longest texts of each label."""
    order = sorted(range(len(evaluation.rows)), key=lambda at: -len(evaluation.rows[at].text))
    return [at for label in (True, False) for at in [at for at in order if evaluation.rows[at].unsafe is label][:each]]


def draw(evaluation: Evaluation, file: Path, rows: Sequence[int] | None = None, title: str = "") -> Path:
    """Write the picture.

    Args:
        evaluation: What to show.
        file: File to write; its suffix gives the format.
        rows: Texts whose probability is drawn, by index; by default the longest of each label. If no text was judged
            more than once, the probabilities of all whole texts are drawn instead.
        title: Title above the picture.

    Returns:
        The file.

    Raises:
        WeightopsError: matplotlib is missing.
    """
    figures = needed("matplotlib.figure", "matplotlib", "train")
    figure: Any = figures.Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if has_prefixes(evaluation):
        _curve(left, evaluation)
        _scores(right, evaluation, chosen_rows(evaluation) if rows is None else rows)
    else:
        _counts(left, evaluation)
        _trade(right, evaluation)
    if title:
        figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=150)
    return file


def has_prefixes(evaluation: Evaluation) -> bool:
    """Whether any text was judged more than once; if not, there is nothing to draw over characters read."""
    return any(len(track.probabilities) > 1 for track in evaluation.tracks)


def _counts(axes: Any, evaluation: Evaluation) -> None:
    """Draw a histogram of the probabilities for each label."""
    import numpy as np

    for unsafe, colour, label in ((False, SAFE, "safe texts"), (True, UNSAFE, "unsafe texts")):
        values = _probabilities(evaluation, unsafe=unsafe)
        if values:
            axes.hist(values, bins=np.linspace(0, 1, 21), color=colour, alpha=0.55, label=f"{label}: {len(values)}")
    axes.axvline(evaluation.threshold, color=INK, ls="--", lw=1.2, label=f"threshold {evaluation.threshold:g}")
    axes.set(xlabel="probability of unsafe", ylabel="texts", xlim=(0, 1), title="Whole texts")
    _plain(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="best")


def _trade(axes: Any, evaluation: Evaluation) -> None:
    """Draw recall over false alarms for every threshold, and mark the guard's threshold."""
    import numpy as np

    safe, unsafe = (np.array(_probabilities(evaluation, unsafe=label)) for label in (False, True))
    axes.set(xlabel="false alarms on safe texts", ylabel="recall", title="At every threshold")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _plain(axes)
    if not len(safe) or not len(unsafe):
        axes.text(0.5, 0.5, "needs safe and unsafe texts", ha="center", color=INK)
        return
    thresholds = [np.inf, *sorted({*safe, *unsafe}, reverse=True)]
    alarms, recall = ([float((values >= at).mean()) for at in thresholds] for values in (safe, unsafe))
    axes.step(alarms, recall, where="post", color=STREAMING, label=f"area {evaluation.measures['auroc']:.3f}")
    at_threshold = [float((values >= evaluation.threshold).mean()) for values in (safe, unsafe)]
    axes.plot(*at_threshold, color=INK, ls="", marker="o", mfc="white", label=f"threshold {evaluation.threshold:g}")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def _probabilities(evaluation: Evaluation, *, unsafe: bool) -> list[float]:
    pairs = zip(evaluation.rows, evaluation.tracks, strict=True)
    return [track.probabilities[-1] for row, track in pairs if row.unsafe is unsafe]


def _curve(axes: Any, evaluation: Evaluation) -> None:
    lengths, alone, streaming = zip(*evaluation.curve, strict=True)
    f1, interval = evaluation.measures["offline_f1"], evaluation.intervals["offline_f1"]
    axes.axhspan(*interval, color=INK, alpha=0.12, lw=0)
    axes.axhline(f1, color=INK, ls="--", lw=1.2, label=f"whole texts: {f1:.3f} (95 % interval)")
    marker = "o" if len(lengths) < 15 else ""
    axes.plot(lengths, alone, color=ALONE, marker=marker, ms=4, label="this prefix alone")
    label = f"unsafe at any prefix so far: {evaluation.measures['streaming_f1']:.3f}"
    axes.plot(lengths, streaming, color=STREAMING, marker=marker, ms=4, label=label)
    axes.set(xlabel="characters read", ylabel="F1", ylim=(-0.02, 1.02), title="F1 over prefix length")
    axes.set_xlim(left=0)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def _scores(axes: Any, evaluation: Evaluation, rows: Sequence[int]) -> None:
    import numpy as np

    for at in rows:
        row, track = evaluation.rows[at], evaluation.tracks[at]
        colour = UNSAFE if row.unsafe else SAFE
        axes.plot(track.characters, track.probabilities, color=colour, lw=1.3, alpha=0.8, marker=".", ms=4)
        if crossed := track.crossing(evaluation.threshold):
            height = track.probabilities[track.characters.index(crossed.characters)]
            axes.plot(crossed.characters, height, color=colour, marker="o", ms=7, mfc="white", zorder=3)
        if row.unsafe and row.first_unsafe_char is not None:
            height = np.interp(row.first_unsafe_char, track.characters, track.probabilities)
            axes.plot(row.first_unsafe_char, height, color=colour, marker="|", ms=14, mew=2, zorder=3)
    axes.axhline(evaluation.threshold, color=INK, ls="--", lw=1.2)
    for colour, label, style in (
        (UNSAFE, "unsafe text", {}),
        (SAFE, "safe text", {}),
        (INK, f"threshold {evaluation.threshold:g}", {"ls": "--"}),
        (INK, "first crossing", {"ls": "", "marker": "o", "mfc": "white"}),
        *(
            ((INK, "first unsafe character", {"ls": "", "marker": "|", "mew": 2}),)
            if _known_first(evaluation, rows)
            else ()
        ),
    ):
        axes.plot([], [], color=colour, label=label, **style)
    axes.set(xlabel="characters read", ylabel="probability of unsafe", ylim=(-0.02, 1.02), title="Along some texts")
    axes.set_xlim(left=0)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8.5, loc="best")


def _known_first(evaluation: Evaluation, rows: Sequence[int]) -> bool:
    return any(evaluation.rows[at].unsafe and evaluation.rows[at].first_unsafe_char is not None for at in rows)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, lw=0.6)
