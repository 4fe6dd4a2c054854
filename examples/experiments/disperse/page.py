"""The evidence in ``docs/disperse-then-merge.md``: tables between two marks in the page, and the picture beside it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.experiments.evidence import DOCS, Measured, Page, grid, interval, read_results, signed
from weightops.errors import WeightopsError

REST = ("GSM8K", "TruthfulQA", "MBPP")
LABELS: Mapping[str, str] = {
    "base": "base",
    "single": "single SFT",
    "single stopped": "single SFT, stopped at a quarter",
    "random part": "SFT on a quarter of the rows",
    "constant": "single SFT, constant rate",
    "constant stopped": "the same, stopped at a quarter",
    "wsm": "WSM: the same, last checkpoints averaged",
    "random average": "DTM, random parts, average",
    "random by tokens": "DTM, random parts, average by tokens",
    "random ties": "DTM, random parts, TIES",
    "random dare_linear": "DTM, random parts, DARE",
    "random dare_ties": "DTM, random parts, DARE-TIES",
    "random core ties": "DTM, random parts, Core-TIES",
    "random soup": "greedy soup of the random parts",
    "kmeans average": "DTM, k-means parts, average",
    "conflict average": "DTM, conflict parts, average",
}
"""What was measured and how the page calls it, in the order of its tables."""
USES: Mapping[str, str] = {
    "train": "to train on: a third from each source, drawn anew for each seed",
    "task": "task loss: a third from each source, the same for all seeds",
    "choice": "the greedy soup chooses by them; as above, other rows",
    **dict.fromkeys(REST, "rest loss"),
}
MERGED = tuple(name for name, label in LABELS.items() if label.startswith(("DTM", "greedy")))
COLOURS = {"single": "#D55E00", "merged": "#0072B2", "other": "#009E73", "ink": "#444444"}
"""Told apart by every eye (Okabe and Ito)."""


class Results:
    """The measurements of a file of results."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], sets: Sequence[Mapping[str, Any]] = ()) -> None:
        self.lines, self.sets = lines, sets

    def has(self, name: str) -> bool:
        """Whether anything of that name was measured."""
        return any(line["name"] == name for line in self.lines)

    def of(self, name: str, value: Callable[[Mapping[str, Any]], float]) -> Measured:
        """A value of each seed's measurement of that name.

        Raises:
            WeightopsError: there is none.
        """
        if not self.has(name):
            raise WeightopsError(f"nothing was measured of {name!r}; run the experiment again to resume it")
        return Measured({line["seed"]: value(line) for line in self.lines if line["name"] == name})


def norm(line: Mapping[str, Any]) -> float:
    """Of the change."""
    return float(line["norm"])


def task(line: Mapping[str, Any]) -> float:
    """The loss on held-out rows of the sources."""
    return float(line["losses"]["task"])


def rest(line: Mapping[str, Any]) -> float:
    """The mean of the losses on the sets that no run was trained on."""
    return statistics.mean(line["losses"][name] for name in REST)


def tables(results: Results) -> dict[str, str]:
    """Every table of the page by its mark."""
    shown = [name for name in LABELS if results.has(name)]
    return {
        "rows": _rows(results),
        "losses": _losses(results, shown),
        "differences": _differences(results, shown),
        "stopped": _stopped(results, shown),
        "rescaled": _rescaled(results, shown),
        "sets": _sets(results, shown),
    }


def _rows(results: Results) -> str:
    rows = []
    for each in results.sets:
        least, most = min(each["answer tokens"]), max(each["answer tokens"])
        tokens = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        rows.append([each["name"], USES[each["name"]], f"{each['rows']:,}", tokens])
    return grid(["rows", "used", "number", "answer tokens"], rows)


def _losses(results: Results, shown: Sequence[str]) -> str:
    rows = [
        [LABELS[name], str(len(results.of(name, norm).values)), interval(results.of(name, norm), 2),
         interval(results.of(name, task)), interval(results.of(name, rest))]
        for name in shown
    ]  # fmt: skip
    return grid(["model", "seeds", "norm of the change", "task loss", "rest loss"], rows)


def _differences(results: Results, shown: Sequence[str]) -> str:
    """From single SFT, paired by seed."""
    rows = [
        [LABELS[name], *(signed(results.of(name, value) - results.of("single", value)) for value in (task, rest))]
        for name in shown
        if name not in ("base", "single")
    ]
    return grid(["model", "task loss, minus that of single SFT", "rest loss, minus that of single SFT"], rows)


def _stopped(results: Results, shown: Sequence[str]) -> str:
    """Merged models against a training on a quarter of the rows, paired by seed."""
    controls = ("single stopped", "random part")
    rows = [
        [LABELS[name], *(signed(results.of(name, value) - results.of(control, value))
                         for control in controls for value in (task, rest))]
        for name in shown
        if name in MERGED
    ]  # fmt: skip
    head = [f"{loss} loss, minus that of: {LABELS[control]}" for control in controls for loss in ("task", "rest")]
    return grid(["model", *head], rows)


def _rescaled(results: Results, shown: Sequence[str]) -> str:
    """Merged models against the single run's change at their norm, paired by seed."""
    rows = [
        [LABELS[name], interval(results.of(name, norm) / results.of("single", norm), 2),
         *(signed(results.of(name, value) - shrunk(results, name, value)) for value in (task, rest))]
        for name in shown
        if name in MERGED
    ]  # fmt: skip
    return grid(["model", "scale of the single run's change", "task loss, minus that of the rescaled single SFT",
                  "rest loss, minus that of the rescaled single SFT"], rows)  # fmt: skip


def shrunk(results: Results, name: str, value: Callable[[Mapping[str, Any]], float]) -> Measured:
    """A value of the single run's change at another change's norm: linear between those measured, none beyond them."""
    import numpy as np

    values = {}
    for seed, length in results.of(name, norm).values.items():
        path = [line for line in results.lines if line["name"] == "base" or (line["seed"] == seed and _is_single(line))]
        points = sorted((norm(line), value(line)) for line in path)
        if length <= points[-1][0]:
            values[seed] = float(np.interp(length, *zip(*points, strict=True)))
    return Measured(values)


def _is_single(line: Mapping[str, Any]) -> bool:
    """Whether a measurement is of the single run's change, at any scale."""
    return line["name"] == "single" or line["name"].startswith(("path ", "single rescaled to "))


def _sets(results: Results, shown: Sequence[str]) -> str:
    rows = [
        [LABELS[name], *(interval(results.of(name, lambda line, each=each: line["losses"][each])) for each in REST)]  # type: ignore[misc]
        for name in shown
    ]
    return grid(["model", *REST], rows)


def draw(results: Results, file: Path) -> None:
    """Gain on the task against loss of the rest, from the base; the single run's change scaled down is a curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes: Any = figure.subplots()
    path = _path(results)
    axes.plot([lost for _, lost, _ in path], [gained for _, _, gained in path], color=COLOURS["single"], lw=1.4,
              zorder=1, label="single SFT, its change scaled from 0 to 1")  # fmt: skip
    for number, name in enumerate(each for each in LABELS if each != "base" and results.has(each)):
        lost, gained = _moved(results, name)
        colour = COLOURS["single" if name.startswith("single") else "merged" if name in MERGED else "other"]
        look: dict[str, Any] = {"color": colour, "elinewidth": 0.5, "alpha": 0.9, "ms": 6, "ls": ""}
        axes.errorbar(lost.mean, gained.mean, xerr=lost.half_width, yerr=gained.half_width, label=LABELS[name],
                      marker="osD^vP*X"[number % 8], **look)  # fmt: skip
    axes.axhline(0, color=COLOURS["ink"], lw=0.5)
    axes.axvline(0, color=COLOURS["ink"], lw=0.5)
    axes.set(xlabel="loss of the rest, from the base (left is better)",
             ylabel="gain on the task, from the base (up is better)")  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    axes.legend(frameon=False, fontsize=7, loc="upper right")
    figure.savefig(file, dpi=110)


def _moved(results: Results, name: str) -> tuple[Measured, Measured]:
    """Loss of the rest and gain on the task."""
    lost = results.of(name, rest) - results.of("base", rest)
    gained = results.of("base", task).mean
    return lost, Measured({seed: gained - value for seed, value in results.of(name, task).values.items()})


def _path(results: Results) -> list[tuple[float, float, float]]:
    """Scale of the single run's change, loss of the rest and gain on the task: the means of the seeds."""
    names = {0.0: "base", 1.0: "single"}
    names |= {
        float(match[1]): line["name"] for line in results.lines if (match := re.fullmatch("path (.+)", line["name"]))
    }
    return [(scale, *(each.mean for each in _moved(results, names[scale]))) for scale in sorted(names)]  # type: ignore[misc]


def _read(file: Path) -> Results:
    content = read_results(file)
    return Results(content["measured"], content["sets"])


PAGE = Page(
    DOCS / "disperse-then-merge.md",
    Path(__file__).with_name("results.json"),
    tables,
    {"disperse-then-merge.png": draw},
    _read,
)
