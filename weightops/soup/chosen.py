"""A chosen merge: what is known about it, and the folder that it is written to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, check_options
from ..merge.build import Built
from ..output.modelcard import Card, Paper, code, fenced
from ..output.save import Package, Saved, prepare
from .candidate import Scored
from .metric import Metric
from .soup_picture import draw_soup

if TYPE_CHECKING:
    from .making import SoupPlan

RECIPE, REPORT, PICTURE = "soup.yml", "soup.json", "soup.png"
"""The files of an output that say how it was chosen."""


@dataclass(frozen=True, eq=False)
class Soup:
    """A chosen merge and what is known about it.

    Attributes:
        chosen: The candidate; its score is NaN where there was no metric.
        controls: The base, each model alone, and the plain mean.
        scored: Every candidate that was judged, in order.
        reported: The controls and the chosen one (the last) on the data to report; empty without such data.
    """

    plan: SoupPlan
    chosen: Scored
    controls: tuple[Scored, ...]
    scored: tuple[Scored, ...]
    reported: tuple[Scored, ...]

    @property
    def weights(self) -> Mapping[str, float]:
        """What each model counts for."""
        return self.chosen.candidate.weights

    @property
    def score(self) -> float:
        """The chosen candidate's score, on the data that chose it."""
        return self.chosen.score

    @property
    def beaten_by(self) -> Scored | None:
        """The control that scores best, if it is better than the choice: on the data to report, where there are any."""
        metric = self.plan.metric
        sign = -1 if metric is None or metric.higher_is_better else 1
        controls, choice = (self.reported[:-1], self.reported[-1]) if self.reported else (self.controls, self.chosen)
        ahead = [one for one in controls if sign * one.score < sign * choice.score]
        return min(ahead, key=lambda one: sign * one.score, default=None)

    def to_json(self) -> dict[str, Any]:
        """Everything that was chosen and measured, as JSON values."""
        plan, strategy = self.plan, self.plan.strategy
        return {
            "strategy": type(strategy).__name__,
            "settings": {field.name: getattr(strategy, field.name) for field in fields(strategy)},
            "models": list(plan.ingredients.names),
            "base": plan.ingredients.base,
            **_metric_json("metric", plan.metric),
            **_metric_json("report", plan.report),
            "chosen": _scored_json(self.chosen),
            "controls": [_scored_json(one) for one in self.controls],
            "reported": [_scored_json(one) for one in self.reported],
            "candidates": [_scored_json(one) for one in self.scored],
        }

    def built(
        self, *, shard_size: int = DEFAULT_SHARD, allow_nonfinite: bool = False, command: str | None = None
    ) -> tuple[Built, Package]:
        """The chosen merge's plan, and its package with card, merge file, scores and picture."""
        check_options({"shard_size": shard_size, "allow_nonfinite": allow_nonfinite})
        options = replace(self.plan.ingredients.options, shard_size=shard_size, allow_nonfinite=allow_nonfinite)
        built = replace(self.plan.ingredients, options=options).built(self.chosen.candidate)
        report = self.to_json()
        summary = {key: value for key, value in report.items() if key not in ("candidates", "controls", "reported")}
        recipe = {**built.plan.recipe, "kind": "soup", "soup": summary}
        files = {
            **built.package.files,
            RECIPE: self.chosen.candidate.text.encode(),
            REPORT: (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
            **self._picture(),
        }
        if self.plan.metric is not None:
            files |= self.plan.metric.files(self.plan.ingredients.carried)
        package = replace(built.package, card=self._card(built.package.card, command), files=files)
        return replace(built, plan=replace(built.plan, recipe=recipe)), package

    def save(
        self,
        out: str | Path,
        *,
        shard_size: int = DEFAULT_SHARD,
        allow_nonfinite: bool = False,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        overwrite: bool = False,
        progress: bool = True,
        command: str | None = None,
    ) -> Saved:
        """Write the chosen merge as a Hugging Face folder.

        Beside the weights lie ``soup.yml``, from which ``weightops merge`` makes the same weights, ``soup.json`` with
        all scores, and ``soup.png``.

        Raises:
            WeightopsError: what prevents the merge, or went wrong; ``out`` is then unchanged.
        """
        built, package = self.built(shard_size=shard_size, allow_nonfinite=allow_nonfinite, command=command)
        prepared = prepare(built.plan, package, Path(out), overwrite=overwrite)
        return prepared.write(threads=threads, memory=memory, progress=progress)

    def _picture(self) -> dict[str, bytes]:
        """The picture of the search; none without matplotlib, or where nothing was judged."""
        if not self.scored or find_spec("matplotlib") is None:
            return {}
        return {PICTURE: draw_soup(self)}

    def _card(self, card: Card, command: str | None) -> Card:
        plan, paper = self.plan, self.plan.strategy.paper
        by = "a table of scores" if plan.metric is None else plan.metric.words
        count, strategy = len(plan.ingredients.names), type(plan.strategy).__name__
        text = (
            f"Chosen by {by} among {count} model{'s' * (count > 1)} (strategy `{strategy}`).\n\n"
            f"{self._table()}{fenced(self.chosen.candidate.text.strip(), 'yaml')}"
        )
        papers = {one.arxiv: one for one in [*card.papers, *([Paper(*paper)] if paper else [])]}
        shown = tuple(papers.values())
        return replace(card, title="A soup of models", text=text, tags=("model-soup",), papers=shown, command=command)

    def _table(self) -> str:
        """The scores of the controls and of the choice, as Markdown; empty without a metric."""
        metric = self.plan.metric
        if metric is None:
            return ""
        head = ["candidate", metric.words, *(["on the data to report"] if self.reported else [])]
        lines = [head, ["---"] * len(head)]
        shown = [(code(one.candidate.label), one) for one in self.controls] + [("**chosen**", self.chosen)]
        for place, (label, one) in enumerate(shown):
            lines.append([label, _number(one.score), *([_number(self.reported[place].score)] if self.reported else [])])
        caution = "" if self.reported else "These scores are of the data that chose the soup.\n\n"
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{caution}"


def _metric_json(key: str, metric: Metric | None) -> dict[str, Any]:
    return {key: None if metric is None else {**metric.settings(), "higher_is_better": metric.higher_is_better}}


def _scored_json(one: Scored) -> dict[str, Any]:
    score = None if one.dropped else one.score
    entry = {"candidate": one.candidate.label, "score": score, "weights": dict(one.candidate.weights)}
    return {**entry, "problem": one.problem} if one.problem else entry


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
