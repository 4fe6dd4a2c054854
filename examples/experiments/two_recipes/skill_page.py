"""The evidence in ``docs/two-recipes.md``: tables between two marks in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.experiments.evidence import DOCS, Measured, Page, grid, interval, signed

SKILLS: Mapping[str, Mapping[str, str]] = {
    "calls": {"routines": "key tokens", "plain": "plain calls"},
    "problems": {"routines": "grape", "plain": "plain problems"},
}
"""Of each skill, the model of each pair that was trained on it alone."""
TITLES: Mapping[str, str] = {
    "base": "base",
    "key tokens": "calls, key tokens",
    "grape": "problems, GRAPE",
    "routines task_arithmetic": "both, task arithmetic",
    "routines ties": "both, TIES",
    "plain calls": "control: calls, plain",
    "plain problems": "control: problems, plain",
    "plain task_arithmetic": "control: both, task arithmetic",
    "plain ties": "control: both, TIES",
}
"""What was measured and how the page calls it, in the order of its tables."""
CONTROLS: Mapping[str, str] = {
    "key tokens": "plain calls",
    "grape": "plain problems",
    "routines task_arithmetic": "plain task_arithmetic",
    "routines ties": "plain ties",
}

Lines = Sequence[Mapping[str, Any]]


def tables(lines: Lines) -> dict[str, str]:
    """Every table of the page by its mark, of what is measured so far; empty while there is nothing to show in it."""
    measured = {line["name"] for line in lines}
    compared = [name for name, control in CONTROLS.items() if {name, control} <= measured]
    return {
        "kept": _kept(lines, [name for name in TITLES if name in measured]) if measured else "",
        "against plain": _against_plain(lines, compared) if compared else "",
    }


PAGE = Page(DOCS / "two-recipes.md", Path(__file__).with_name("results.json"), tables)


def values(lines: Lines, name: str, value: str) -> Measured:
    """A value of each seed's measurement of a name."""
    return Measured({line["seed"]: float(line[value]) for line in lines if line["name"] == name})


def kept(lines: Lines, pair: str, method: str, skill: str) -> Measured:
    """Share of what a skill gained over the base alone that its merge has kept, for each seed."""
    base = values(lines, "base", skill)
    merged, alone = values(lines, f"{pair} {method}", skill), values(lines, SKILLS[skill][pair], skill)
    return (merged - base) / (alone - base)


def _kept(lines: Lines, shown: Sequence[str]) -> str:
    """A row for each model: both losses, what a merge kept of each skill, and its calls."""
    rows = []
    for name in shown:
        pair, _, method = name.partition(" ")
        merge = method in ("task_arithmetic", "ties")
        shares = [_percent(kept(lines, pair, method, skill)) if merge else "" for skill in SKILLS]
        losses = [interval(values(lines, name, skill)) for skill in SKILLS]
        answers = [interval(values(lines, name, value), 1) for value in ("right tools", "right calls")]
        rows.append([TITLES[name], losses[0], shares[0], losses[1], shares[1], *answers])
    head = ["model", "loss on calls", "kept", "loss on problems", "kept", "right tools", "right calls"]
    return grid(head, rows)


def _against_plain(lines: Lines, shown: Sequence[str]) -> str:
    """Each model minus its control, paired by seed."""
    measured = ("calls", "problems", "right tools", "reward")
    rows = [
        [
            TITLES[name],
            *(signed(values(lines, name, value) - values(lines, CONTROLS[name], value)) for value in measured),
        ]
        for name in shown
    ]
    return grid(["minus its control", "loss on calls", "loss on problems", "right tools", "reward of calls"], rows)


def _percent(share: Measured) -> str:
    return interval(Measured({seed: 100 * value for seed, value in share.values.items()}), 0) + " %"
