"""A candidate: one merge that may be chosen, as the merge file that makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml


@dataclass(frozen=True, eq=False)
class Candidate:
    """A merge as a document of a merge file. Its text is what ``weightops merge`` reads, so both make the same bytes.

    Attributes:
        label: What to call it in tables and pictures.
        document: The keys of the merge file.
        weights: What each model counts for, by name, for tables; only models that take part.
        at: Where it lies on the axis of the picture, and the axis's name; ``None`` for the order of judging.
    """

    label: str
    document: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    at: tuple[str, float] | None = None

    @cached_property
    def text(self) -> str:
        """The merge file."""
        return yaml.safe_dump(dict(self.document), sort_keys=False, allow_unicode=True, width=1_000)


@dataclass(frozen=True)
class Scored:
    """A candidate and what was found out about it.

    Attributes:
        score: By the metric; NaN where the candidate was dropped.
        problem: Why it was dropped.
        known: Whether the score is from an earlier run.
    """

    candidate: Candidate
    score: float
    problem: str | None = None
    known: bool = False

    @property
    def dropped(self) -> bool:
        return math.isnan(self.score)


def weighted(
    weights: Mapping[str, float], label: str, dtype: str | None = None, at: tuple[str, float] | None = None
) -> Candidate:
    """The weighted average of models; the weights are used as they are.

    Args:
        weights: By the models' names, in the order of the merge file; the first gives configuration and tokenizer.
        dtype: Of the output; by default that of each tensor.
    """
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]
    document = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    return Candidate(label, document | _dtype(dtype), dict(weights), at)


def averaged(names: tuple[str, ...], label: str, dtype: str | None = None) -> Candidate:
    """The plain mean of models."""
    document = {"merge_method": "linear", "models": [{"model": name} for name in names]}
    return Candidate(label, document | _dtype(dtype), {name: 1 / len(names) for name in names})


def _dtype(dtype: str | None) -> dict[str, str]:
    return {} if dtype is None else {"dtype": dtype}
