"""Merge methods in the algebra: ``wo.ties([a - base, b - base], density=0.3).on(base).save("out/")``.

Every registered method of task vectors is a function here, under its own name, with its own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy.layers import layer_of, stacks
from ..anatomy.place import Place
from ..dtypes import FLOATS
from ..engine.jobs import Input, Job, Merge, Term
from ..engine.merging import workspace
from ..engine.plan import DEFAULT_SHARD, Plan, make_plan
from ..ops.registry import Operator, find, methods
from ..output.modelcard import Card, code
from ..output.save import Package, save
from .checkpoint import Checkpoint, Delta, computed, describe, lower, sources
from .rules import AlgebraError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MergedDelta:
    """What a merge method makes of task vectors, before it is known what they are added to."""

    method: str
    deltas: tuple[Delta, ...]
    settings: tuple[tuple[str, Any], ...]

    def on(self, base: Checkpoint) -> MergedCheckpoint:
        """The checkpoint: the base the task vectors were taken from, plus what the method makes of them."""
        return MergedCheckpoint(self, base)


@dataclass(frozen=True, eq=False)
class MergedCheckpoint:
    """A merge as a value; lazy until ``save()`` or ``tensor()``."""

    merged: MergedDelta
    base: Checkpoint

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors, the base's."""
        return self.base.names

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, computed now, in the base's dtype."""
        self.base.shape(name)
        return computed(_job(self, name))

    def plan(self, *, shard_size: int = DEFAULT_SHARD, allow_nonfinite: bool = False) -> Plan:
        """What saving would read and write, and what stands in its way; only headers are read."""
        recipe = {
            "kind": "operator",
            "method": self.merged.method,
            "settings": dict(self.merged.settings),
            "models": [describe(self.base + delta) for delta in self.merged.deltas],
        }
        jobs = [_job(self, name) for name in self.names]
        return make_plan(jobs, recipe, shard_size=shard_size, allow_nonfinite=allow_nonfinite)

    def save(self, out: str | Path, *, overwrite: bool = False, progress: bool = True, **plan: Any) -> Path:
        """Write it as a Hugging Face folder, in one streaming pass; see :meth:`.checkpoint.Checkpoint.save`."""
        used = dict.fromkeys(one for delta in self.merged.deltas for one in sources(self.base + delta))
        text = f"Task vectors on {code(self.base.source.spec)} merged by `{self.merged.method}`."
        package = Package(self.base.source, tuple(used), Card(f"A {self.merged.method} merge", text))
        return save(self.plan(**plan), package, Path(out), overwrite=overwrite, progress=progress).folder


def function(name: str) -> Callable[..., MergedDelta]:
    """A method of task vectors as a function of deltas.

    Raises:
        AttributeError: no such method, or one that takes models.
    """
    if name not in {method.name for method in methods() if method.takes == "deltas"}:
        raise AttributeError(f"module 'weightops' has no attribute {name!r}")
    method = find(name)

    def merge(deltas: Sequence[Delta], **settings: Any) -> MergedDelta:
        return _merged(method, deltas, settings)

    merge.__name__, merge.__doc__ = name, method.function.__doc__
    return merge


def _merged(method: Operator, deltas: Sequence[Delta], settings: dict[str, Any]) -> MergedDelta:
    fewest, most = method.models
    if not all(isinstance(delta, Delta) for delta in deltas):
        raise AlgebraError(f"{method.name} merges differences; write {method.name}([a - base, b - base]).on(base)")
    if len(deltas) < fewest or (most is not None and len(deltas) > most):
        raise AlgebraError(
            f"{method.name} merges {fewest} to {most or 'any number of'} task vectors; {len(deltas)} given"
        )
    named = {method.parameter(name.rstrip("_")).name: value for name, value in settings.items()}
    fixed = {name: tuple(value) if isinstance(value, list) else value for name, value in named.items()}
    return MergedDelta(method.name, tuple(deltas), tuple(sorted(fixed.items())))


def _job(checkpoint: MergedCheckpoint, name: str) -> Job:
    """One tensor as a job; a tensor that no delta changes, or that holds integers, is the base's."""
    merged, base = checkpoint.merged, checkpoint.base
    plain = lower(base, name)
    lowered = [lower(base + delta, name) for delta in merged.deltas]
    if plain.dtype not in FLOATS or not plain.count or all(job.terms == plain.terms for job in lowered):
        return plain
    place = layer_of(name)
    where = Place(name, place.index, stacks(base.names)[place.stack]) if place else Place(name)
    inputs = tuple(_input(job, plain, merged.method) for job in lowered)
    merge = Merge(merged.method, inputs, _input(plain, plain, merged.method), merged.settings, where)
    merge = replace(merge, workspace=workspace(plain.shape, merge))
    return Job(name, plain.dtype, plain.shape, None, merge=merge)


def _input(job: Job, plain: Job, method: str) -> Input:
    """One model of a merge: another model's tensor, or the base's with low-rank updates."""
    extra = [term for term in job.terms if term not in plain.terms]
    if job.anchor is None or plain.anchor is None:
        raise AlgebraError(f"{job.name}: {method} needs a base with weights of its own")
    if len(extra) == 1 and _is_model(extra[0], plain):
        return Input(extra[0].plus)  # type: ignore[arg-type]  # a difference is of stored tensors
    if all(term.minus is None for term in job.terms):
        return Input(job.anchor, job.terms)
    raise AlgebraError(
        f"{job.name}: {method} merges plain task vectors, model - base or an adapter, on the base they were taken "
        "from; save what you scaled or added first"
    )


def _is_model(term: Term, plain: Job) -> bool:
    return term.coefficient == 1.0 and term.minus == plain.anchor and not plain.terms
