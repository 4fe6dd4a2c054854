"""The evidence in ``docs/sparse-training.md``: tables between two marks in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.experiments.evidence import DOCS, Measured, Page, grid, interval, signed

from .ways import FIXED, WAYS

Lines = Sequence[Mapping[str, Any]]


def tables(lines: Lines) -> dict[str, str]:
    """Every table of the page by its mark; empty while there is nothing to show in it."""
    ran = {line["way"] for line in lines if line["kind"] == "run"} >= {"lora-2", "ag", "ma", *FIXED}
    return {
        "learning rates": _rates(lines),
        "sparse losses": _losses(lines) if ran else "",
        "regrowth": _regrowth(lines) if ran else "",
    }


PAGE = Page(DOCS / "sparse-training.md", Path(__file__).with_name("results.json"), tables)


def losses(lines: Lines, way: str) -> Measured:
    """The test loss of each seed."""
    return Measured({line["seed"]: line["loss"] for line in _of(lines, "run", way)})


def _rates(lines: Lines) -> str:
    """What each way reached on the held-out quarter of seed 0, by learning rate."""
    rows = []
    for way in WAYS:
        tried = sorted((line["rate"], line["loss"]) for line in _of(lines, "tuning", way))
        if tried:
            listed = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in tried)
            rows.append([WAYS[way].title, f"{WAYS[way].trained:,}", listed, f"{min(loss for _, loss in tried):.3f}"])
    return grid(["way", "trained", "lr: held-out loss", "the least"], rows)


def _losses(lines: Lines) -> str:
    """A row for each way, with the difference from LoRA of as many parameters, paired by seed."""
    rows = []
    for way in [way for way in WAYS if _of(lines, "run", way)]:
        rate = _of(lines, "run", way)[0]["rate"]
        against = "" if way == "lora-2" else signed(losses(lines, way) - losses(lines, "lora-2"))
        rows.append([WAYS[way].title, f"{WAYS[way].trained:,}", f"{rate:g}", interval(losses(lines, way)),
                     against, _right(lines, way)])  # fmt: skip
    base = ["base", "0", "", "".join(f"{line['loss']:.3f}" for line in lines if line["kind"] == "base"), "",
            _right(lines, "base")]  # fmt: skip
    head = ["way", "trained", "lr", "test loss", "minus that of LoRA, rank 2", "right answers"]
    return grid(head, [*rows, base])


def _regrowth(lines: Lines) -> str:
    """The two ways that exchange entries against those that do not, paired by seed."""
    rows = [
        [WAYS[way].title, *(signed(losses(lines, way) - losses(lines, fixed)) for fixed in FIXED)]
        for way in ("ag", "ma")
    ]
    return grid(["test loss, minus that of", *(WAYS[fixed].title for fixed in FIXED)], rows)


def _right(lines: Lines, way: str) -> str:
    answers = _of(lines, "answers", way)
    return f"{answers[0]['right']} of {answers[0]['asked']}" if answers else ""


def _of(lines: Lines, kind: str, way: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["kind"] == kind and line["way"] == way]
