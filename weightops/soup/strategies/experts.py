"""Soup of category experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import Message, Remedy, WeightopsError
from ..score_table import ScoreTable, read_table
from ..strategy import Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..bench import Bench
    from ..candidate import Candidate

MOST_WEIGHTINGS = 2_000


@dataclass(frozen=True)
class Experts(Strategy):
    """Average the best model of each kind of task, by a table of scores.

    Soup of category experts (SoCE, arXiv 2511.13254): categories whose scores rise and fall together over the models
    are one kind of task; each kind's best model takes part. The table alone chooses the models. Their weights are equal
    without --data, and with it the best of a grid. How categories are grouped is ours: average linkage of Pearson
    correlations; so is the measure of the best, the mean of the standardised scores.

    Attributes:
        table: Scores in CSV (a row for each model) or JSON ({model: {category: score}}).
        correlation: Kinds are joined while their categories correlate at least so much, on average.
        step: Step of the grid of weights; each expert has at least one step.
        lower_is_better: Lower scores in the table are better.
    """

    example: ClassVar[str] = "weightops soup experts ./a ./b ./c --table scores.csv --data dev.jsonl --out soup"
    paper: ClassVar[tuple[str, str]] = ("Souper-Model (SoCE)", "2511.13254")
    needs_metric: ClassVar[bool] = False

    table: str = ""
    correlation: float = 0.5
    step: float = 0.1
    lower_is_better: bool = False

    def problems(self, names: Sequence[str], base: str | None) -> Iterator[str]:
        """A table that cannot be read or does not fit the models, or settings out of range."""
        if not self.table:
            yield Message("no table of scores", Remedy("name it as {}", "table"))
            return
        if not -1 <= self.correlation <= 1:
            yield Message(f"correlation {self.correlation:g} is not from -1 to 1", Remedy("change {}", "correlation"))
        if not 0 < self.step <= 0.5 or abs(round(1 / self.step) * self.step - 1) > 1e-9:
            yield Message(f"step {self.step:g} does not divide 1", Remedy("change {}", "step"))
            return
        try:
            if self.evaluations(names) > MOST_WEIGHTINGS:
                count = f"{self.evaluations(names)} weightings of {len(self.experts(names))} experts"
                yield Message(f"{count}, the limit is {MOST_WEIGHTINGS}", Remedy("choose a larger {}", "step"))
        except WeightopsError as error:
            yield from error.problems

    def evaluations(self, names: Sequence[str]) -> int:
        """All weightings of the experts."""
        return math.comb(round(1 / self.step) - 1, len(self.experts(names)) - 1)

    def experts(self, names: Sequence[str]) -> Mapping[str, tuple[tuple[str, ...], ...]]:
        """The best model of each kind of task, and the categories of these kinds, in the order of the models.

        Raises:
            WeightopsError: the table cannot be read, or does not fit the models.
        """
        table = read_table(Path(self.table)).of(names, self.table)
        standard = _standardised(table, lower_is_better=self.lower_is_better)
        chosen: dict[str, list[tuple[str, ...]]] = {}
        for kind in _kinds(standard, self.correlation):
            best = int(standard[:, kind].mean(1).argmax())
            chosen.setdefault(table.models[best], []).append(tuple(table.categories[column] for column in kind))
        return {name: tuple(chosen[name]) for name in names if name in chosen}

    def choose(self, bench: Bench) -> Candidate:
        """The best weighting of the experts; equal weights without a metric."""
        experts = self.experts(bench.names)
        for name, kinds in experts.items():
            best_of = "; ".join(" + ".join(kind) for kind in kinds)
            bench.progress.tell(f"{bench.ingredients.short[name]}: best of {best_of}")
        if bench.metric is None:
            return bench.mean(tuple(experts), "experts")
        judged = [bench.score(self._weighting(bench, parts)) for parts in self._weightings(tuple(experts))]
        return bench.best_of(judged, "weighting").candidate

    def _weighting(self, bench: Bench, weights: Mapping[str, float]) -> Candidate:
        shown = ", ".join(f"{weight:g} {bench.ingredients.short[name]}" for name, weight in weights.items())
        return bench.combined(weights, shown)

    def _weightings(self, names: Sequence[str]) -> Iterator[dict[str, float]]:
        """Every way to share 1 in steps, at least one step for each."""
        steps = round(1 / self.step)
        for cuts in combinations(range(1, steps), len(names) - 1):
            ends = (0, *cuts, steps)
            yield {name: (ends[at + 1] - ends[at]) / steps for at, name in enumerate(names)}


def _standardised(table: ScoreTable, *, lower_is_better: bool) -> NDArray[Any]:
    """Each category with mean 0 and deviation 1 over the models, higher being better; 0 where all score the same."""
    import numpy as np

    centred = (table.scores - table.scores.mean(0)) * (-1 if lower_is_better else 1)
    deviation = table.scores.std(0)
    standard: NDArray[Any] = centred / np.where(deviation > 1e-12, deviation, np.inf)
    return standard


def _kinds(standard: NDArray[Any], least: float) -> list[list[int]]:
    """Categories in groups: the two with the highest mean correlation are joined while it is at least ``least``.

    Categories in which all models score the same tell nothing, and are left out unless all are such.
    """
    telling = [column for column in range(standard.shape[1]) if standard[:, column].any()]
    groups = [[column] for column in telling] or [list(range(standard.shape[1]))]
    correlations = standard.T @ standard / len(standard)

    def linked(one: list[int], other: list[int]) -> float:
        return float(correlations[one][:, other].mean())

    while len(groups) > 1:
        pairs = list(combinations(range(len(groups)), 2))
        first, second = max(pairs, key=lambda pair: linked(groups[pair[0]], groups[pair[1]]))
        if linked(groups[first], groups[second]) < least:
            break
        groups[first] += groups.pop(second)
    return [sorted(group) for group in groups]
