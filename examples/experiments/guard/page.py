"""The figures of ``docs/guard.md``: its tables, between two marks in the page, and its pictures beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiments.evidence import DOCS, grid, mean_and_range, put_tables

from . import runs

PAGE = DOCS / "guard.md"
NAMES = ("training", "composing", "verdicts", "streaming")
COLOURS = {"full": "#D55E00", "prefix": "#0072B2", "streaming": "#CC79A7", "offline": "#009E73", "ink": "#444444"}
"""A palette that colour-blind people can tell apart too (Okabe and Ito)."""


def write(work: Path, seeds: Sequence[int], page: Path = PAGE) -> None:
    """Put the tables into the page in place of the earlier ones, and draw the pictures.

    Raises:
        WeightopsError: the page has no marks for a table.
    """
    speed = json.loads((work / "speed.json").read_text("utf-8"))
    tables = (training(work, seeds), composing(work, seeds), verdicts(speed), streaming(speed))
    put_tables(dict(zip(NAMES, tables, strict=True)), page)
    draw_prefixes(work, seeds, page.with_name("guard-prefixes.png"))
    draw_scales(work, seeds, page.with_name("guard-scales.png"))


def training(work: Path, seeds: Sequence[int]) -> str:
    """Full-text against prefix SFT: a row a measure."""
    cells = []
    for kind in ("full", "prefix"):
        test, alike = _values(work, kind, seeds, "test"), _values(work, kind, seeds, "lookalikes")
        lost = [100 * (off - on) for off, on in zip(test["offline_f1"], test["streaming_f1"], strict=True)]
        cells.append({
            "F1, whole text": mean_and_range(test["offline_f1"]),
            "F1, streaming": mean_and_range(test["streaming_f1"]),
            "points of F1 lost by streaming": mean_and_range(lost, 1),
            "false alarms, whole text": mean_and_range(test["offline_false_alarms"]),
            "false alarms, streaming": mean_and_range(test["streaming_false_alarms"]),
            "area under ROC, whole text": mean_and_range(test["auroc"]),
            "area under ROC, streaming": mean_and_range([_streaming_auroc(work, _name(kind, seed)) for seed in seeds]),
            "caught after, median characters": mean_and_range(test["detected_after_first_unsafe_char"], 0),
            "F1 on XSTest": mean_and_range(alike["offline_f1"]),
            "false alarms on XSTest": mean_and_range(alike["offline_false_alarms"]),
        })  # fmt: skip
    whole, prefix = cells
    return grid(
        ["", "trained on whole texts", "trained on prefixes"], [[key, whole[key], prefix[key]] for key in whole]
    )


def composing(work: Path, seeds: Sequence[int]) -> str:
    """Base, guard, target, composed, and the control."""
    rows = []
    for name, kind in (
        ("base", "base"),
        ("guard", "prefix"),
        ("target", "target"),
        ("target + guard vector", "composed"),
        ("target + shuffled vector", "shuffled"),
    ):
        test, alike = _values(work, kind, seeds, "test"), _values(work, kind, seeds, "lookalikes")
        rows.append([name, *(mean_and_range(test[key]) for key in ("offline_f1", "auroc", "streaming_f1")),
                     *(mean_and_range(alike[key]) for key in ("offline_f1", "auroc"))])  # fmt: skip
    head = ["model", "F1, whole text", "area under ROC", "F1, streaming", "F1, XSTest", "area under ROC, XSTest"]
    return grid(head, rows)


def verdicts(speed: dict[str, Any]) -> str:
    """Label logits against generation."""
    rows = [
        [one["way"], f"{one['tokens_per_second']:,.0f}", f"{one['texts_per_second']:.1f}",
         f"{one['times_label_logits']:.2f}"]
        for one in speed["verdicts"]
    ]  # fmt: skip
    return grid(["verdict", "tokens read a second", "texts a second", "time, of label logits"], rows)


def streaming(speed: dict[str, Any]) -> str:
    """A kept cache against reading every prefix anew."""
    rows = [
        [f"{one['characters']:,}", f"{one['stream_seconds']:.2f} s", f"{one['anew_seconds']:.2f} s",
         f"{one['ratio']:.1f}", f"{one['greatest_difference']:.3f}"]
        for one in speed["streaming"]
    ]  # fmt: skip
    return grid(["characters", "`Stream`", "every prefix anew", "ratio", "greatest difference of a probability"], rows)


def draw_prefixes(work: Path, seeds: Sequence[int], file: Path) -> None:
    """F1 by first crossing as texts arrive, both trainings; a line a seed."""
    figure, axes = _axes("characters read", "F1, unsafe at any prefix so far")
    for kind, label in (("full", "trained on full texts"), ("prefix", "trained on prefixes")):
        for seed in seeds:
            curve = runs.measured(work, _name(kind, seed))["curve"]
            axes.plot([point["characters"] for point in curve], [point["f1_streaming"] for point in curve],
                      color=COLOURS[kind], lw=1.4, alpha=0.85, label=label if seed == seeds[0] else None)  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def draw_scales(work: Path, seeds: Sequence[int], file: Path) -> None:
    """F1 of the composed model over the scale of the vector: the mean of the seeds, and from least to greatest."""
    figure, axes = _axes("scale of the guard vector (0 is the target alone)", "F1")
    for key, name, label in (
        ("offline_f1", "offline", "whole text"),
        ("streaming_f1", "streaming", "streaming"),
        ("auroc", "ink", "area under ROC, whole text"),
    ):
        points = [[_measure(work, _at(seed, scale), "test", key) for seed in seeds] for scale in (0.0, *runs.SCALES)]
        scales = [0.0, *runs.SCALES]
        colour = COLOURS[name]
        axes.fill_between(scales, [*map(min, points)], [*map(max, points)], color=colour, alpha=0.15, lw=0)
        axes.plot(scales, [*map(statistics.mean, points)], color=colour, marker="o", ms=4, label=label,
                  ls="--" if key == "auroc" else "-")  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)


def _axes(across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.set(xlabel=across, ylabel=up, ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, lw=0.6)
    return figure, axes


def _at(seed: int, scale: float) -> str:
    return f"composed-{seed}-{scale:g}" if scale else f"target-{seed}"


def _name(kind: str, seed: int) -> str:
    return "base" if kind == "base" else f"{kind}-{seed}" + ("-1" if kind == "composed" else "")


def _values(work: Path, kind: str, seeds: Sequence[int], test: str) -> dict[str, list[float]]:
    """Every measure of a kind of model, a value a seed."""
    names = [_name(kind, seed) for seed in (seeds if kind != "base" else seeds[:1])]
    keys = runs.measured(work, names[0], test)["measures"]
    return {key: [_measure(work, name, test, key) for name in names] for key in keys}


def _streaming_auroc(work: Path, name: str) -> float:
    """Free of a threshold: a text's score is the largest probability of its prefixes."""
    from sklearn.metrics import roc_auc_score

    rows = runs.measured(work, name)["rows"]
    return float(roc_auc_score([row["unsafe"] for row in rows], [max(row["probabilities"]) for row in rows]))


def _measure(work: Path, name: str, test: str, key: str) -> float:
    value = runs.measured(work, name, test)["measures"][key]["value"]
    return float("nan") if value is None else float(value)
