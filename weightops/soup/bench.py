"""Judges candidates: the model is loaded once, takes on the weights of each candidate in memory, and is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

from ..algebra.loading import load
from ..algebra.patching import PatchedModel
from ..engine.plan import DEFAULT_MEMORY, canonical
from ..errors import WeightopsError
from ..io.progress import Progress, no_progress
from ..io.quiet import quiet_transformers
from .candidate import Candidate, Scored, averaged, weighted
from .ingredients import Ingredients
from .metric import Metric
from .score_journal import ScoreJournal

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]
VERSION = 1
"""Raised when scores of earlier versions no longer hold."""


@dataclass(eq=False)
class Bench:
    """What a strategy asks for scores, and where they are collected.

    Attributes:
        metric: Measures a candidate; ``None`` where a strategy needs none.
        dtype: Of the output; by default that of each tensor.
        precision: Dtype of the weights in memory while they are measured. ``auto``: fp32 on the CPU, the output's dtype
            on an accelerator. They are rounded to the output's dtype first.
        folder: Where a strategy may keep what it needs to resume.
    """

    ingredients: Ingredients
    metric: Metric | None
    journal: ScoreJournal
    progress: Progress
    dtype: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    memory: int = DEFAULT_MEMORY
    trust_remote_code: bool = False
    folder: Path | None = None
    _scored: dict[str, Scored] = field(default_factory=dict)
    _known: dict[str, Scored] = field(default_factory=dict)
    _measures: dict[str, Callable[[], float]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The models to choose from."""
        return self.ingredients.names

    @property
    def judge(self) -> Metric:
        """The metric, for a strategy that needs one."""
        if self.metric is None:
            raise TypeError("this strategy needs a metric")
        return self.metric

    @property
    def scored(self) -> tuple[Scored, ...]:
        """Every candidate that was judged with the metric, in order, each once."""
        return tuple(self._scored.values())

    def alone(self, name: str) -> Candidate:
        """One model by itself."""
        return weighted({name: 1.0}, self.ingredients.short[name], self.dtype)

    def mean(self, names: Sequence[str], label: str | None = None) -> Candidate:
        """The plain mean of some models, in the order in which all were named."""
        ordered = tuple(name for name in self.names if name in names)
        if len(ordered) == 1:
            return self.alone(ordered[0])
        return averaged(ordered, label or " + ".join(self.ingredients.short[name] for name in ordered), self.dtype)

    def combined(self, weights: Mapping[str, float], label: str, at: tuple[str, float] | None = None) -> Candidate:
        """The weighted sum; models of weight 0 do not take part. ``at``: see :class:`.candidate.Candidate`."""
        used = {name: weight for name, weight in weights.items() if weight}
        return weighted(used, label, self.dtype, at)

    def score(self, candidate: Candidate) -> Scored:
        """Judge a candidate with the metric; one that was judged before is not judged again."""
        key, scored = self._key(candidate, self.judge), self.measured(candidate, self.judge)
        if key not in self._scored or candidate.at is not None:  # an end of a curve may be known as a model alone
            self._scored[key] = scored
        if (best := self.best()) is not None:
            self.progress.note(f"best {best.score:.4f}, {best.candidate.label}")
        return scored

    def measured(self, candidate: Candidate, metric: Metric) -> Scored:
        """Judge a candidate with any metric."""
        key = self._key(candidate, metric)
        if key not in self._known:
            earlier = self.journal.get(key)
            score, problem = earlier or self._measure(candidate, metric, key)
            if problem is not None:
                self.progress.tell(f"dropped: {candidate.label}: {problem}")
            self._known[key] = Scored(candidate, score, problem, known=earlier is not None)
            self.progress.update()
        return replace(self._known[key], candidate=candidate)

    def better(self, one: Scored, other: Scored) -> bool:
        """Whether one candidate's score is better than another's; a dropped one is never better."""
        if one.dropped or other.dropped:
            return other.dropped and not one.dropped
        return one.score > other.score if self.judge.higher_is_better else one.score < other.score

    def best(self) -> Scored | None:
        """The best so far; of equal ones the first. ``None`` where none could be judged."""
        return self._first_best(self.scored)

    def best_of(self, judged: Sequence[Scored], kind: str) -> Scored:
        """The best of some candidates; of equal ones the first.

        Args:
            judged: At least one.
            kind: What one of them is called: ``trial``.

        Raises:
            WeightopsError: all of them were dropped, with the reasons.
        """
        best = self._first_best(judged)
        if best is None:
            raise WeightopsError(f"no {kind} could be judged", *(str(one.problem) for one in judged))
        return best

    def _first_best(self, judged: Sequence[Scored]) -> Scored | None:
        best: Scored | None = None
        for one in judged:
            if not one.dropped and (best is None or self.better(one, best)):
                best = one
        return best

    def _measure(self, candidate: Candidate, metric: Metric, key: str) -> tuple[float, str | None]:
        """The score, noted in the journal; NaN and the problem where there is none.

        Raises:
            WeightopsError: data or a model that the metric cannot use: no candidate would do.
        """
        model, tokenizer = self._loaded
        with ExitStack() as stack:
            stack.enter_context(quiet_transformers())
            stack.enter_context(no_progress())
            try:  # NaN in a model or in the result, or settings that a method refuses
                plan = self.ingredients.built(candidate).plan
                worn = stack.enter_context(model.wearing(plan, threads=self.threads, memory=self.memory))
            except WeightopsError as error:
                return math.nan, error.problems[0]
            score = float(self._ready(metric, worn, tokenizer)())
        problem = None if math.isfinite(score) else f"its {metric.words} is not a finite number ({score})"
        score = score if problem is None else math.nan
        self.journal.add(key, score, problem, candidate.label)
        return score, problem

    def _ready(self, metric: Metric, model: Any, tokenizer: Any) -> Callable[[], float]:
        identity = metric.identity()
        if identity not in self._measures:
            self._measures[identity] = metric.ready(model, tokenizer, self.ingredients.carried)
        return self._measures[identity]

    @cached_property
    def _loaded(self) -> tuple[PatchedModel, Any]:
        """The carrier, on its device, ready to wear a candidate's weights."""
        import torch

        model, tokenizer = load(self.ingredients.carrier, trust_remote_code=self.trust_remote_code)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        return PatchedModel(model.to(device).eval(), self._wide(device)), tokenizer

    def _wide(self, device: Any) -> torch.dtype | None:
        import torch

        if self.precision == "auto":
            return torch.float32 if device.type == "cpu" else None
        wide: torch.dtype = getattr(torch, self.precision)
        return wide

    def _key(self, candidate: Candidate, metric: Metric) -> str:
        """A digest of all that decides a score: the merge, its models by content, the metric, how it is computed."""
        contents = self.ingredients.contents
        cards = {name: blake3(data).hexdigest() for name, data in metric.files(self.ingredients.carried).items()}
        parts = [
            VERSION,
            _by_content(candidate.document, contents),
            contents[self.ingredients.carrier_name],
            metric.identity(),
            cards,
            self.precision,
        ]
        return blake3(canonical(parts).encode()).hexdigest()


def _by_content(value: Any, contents: Mapping[str, str]) -> Any:
    """A document of a merge file in which the digest of a model's content takes the place of its name."""
    models = ("model", "base_model", "tokenizer_source")
    if isinstance(value, Mapping):
        return {
            key: contents.get(one, one) if key in models else _by_content(one, contents) for key, one in value.items()
        }
    return [_by_content(one, contents) for one in value] if isinstance(value, list) else value
