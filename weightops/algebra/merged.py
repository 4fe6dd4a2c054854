"""Merge methods in the algebra: ``wo.ties([a - base, b - base], density=0.3).on(base).save("out/")``.

Every registered method that merges task vectors is a function here, with the method's name and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy.layers import layer_of, stacks
from ..anatomy.place import Place
from ..dtypes import FLOATS
from ..engine.execute import measure
from ..engine.jobs import Input, Job, Merge
from ..engine.merging import workspace
from ..engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan, check_options, make_plan
from ..engine.whole_models import Grams, looks_at_models
from ..io.opened import Source
from ..ops.registry import Operator, methods, nearest
from ..output.modelcard import Card, code
from ..output.save import Package, prepare
from .changes import Difference, misfits, shares
from .checkpoint import Checkpoint, Delta, describe, lower, sources
from .guard_cards import CarriedCard, carried_card
from .rules import AlgebraError
from .shown import OneLine, sum_of
from .tensor_jobs import computed

if TYPE_CHECKING:
    import torch

    from ..engine.ray_executor import RayExecutor


@dataclass(frozen=True, repr=False)
class MergedDelta(OneLine):
    """Task vectors merged by a method; :meth:`on` adds the result to a base."""

    method: str
    deltas: tuple[Delta, ...]
    settings: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"<MergedDelta: {_call(self)}>"

    def __getattr__(self, name: str) -> Any:
        if name in ("save", "tensor", "plan"):
            raise AttributeError(f"a merged delta has no {name}; add it to its base first: .on(base).{name}(...)")
        raise AttributeError(f"'MergedDelta' object has no attribute {name!r}")

    def on(self, base: Checkpoint) -> MergedCheckpoint:
        """The base that the task vectors were taken from, plus the merged task vector."""
        if not isinstance(base, Checkpoint):
            raise AlgebraError(
                f"{self.method}(...).on needs a checkpoint, not {type(base).__name__}; open the model: wo.open(...)"
            )
        return MergedCheckpoint(self, base)


@dataclass(frozen=True, eq=False, repr=False)
class MergedCheckpoint(OneLine):
    """A merge as a value; lazy until ``save()`` or ``tensor()``."""

    merged: MergedDelta
    base: Checkpoint

    def __repr__(self) -> str:
        return f"<MergedCheckpoint: {_call(self.merged)} on {self.base.spec}, {len(self.names)} tensors>"

    @cached_property
    def _grams(self) -> Grams:
        """Measurements for a method that looks at whole models; made once and used by every :meth:`tensor`."""
        return measure([_job(self, name) for name in self.names])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors; they are the base's."""
        return self.base.names

    @cached_property
    def models(self) -> tuple[Checkpoint, ...]:
        """For each task vector, the base plus that vector."""
        return tuple(self.base + delta for delta in self.merged.deltas)

    @cached_property
    def guard_card(self) -> CarriedCard:
        """The ``guard.json`` saved with it; see :attr:`.checkpoint.Checkpoint.guard_card`."""
        most: dict[Source, float] = {self.base.source: 0.0}
        for model in self.models:
            for source, share in shares(model.source, model.delta.changes).items():
                most[source] = max(most.get(source, 0.0), share)
        return carried_card(self.base.source, most)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, computed now, in the base's dtype."""
        self.base.shape(name)
        job = _job(self, name)
        return computed(job, self._grams if looks_at_models(job) else None)

    def plan(self, *, dtype: str = "auto", shard_size: int = DEFAULT_SHARD, allow_nonfinite: bool = False) -> Plan:
        """What saving would read and write, and what prevents it; see :meth:`.checkpoint.Checkpoint.plan`."""
        check_options({"dtype": dtype, "shard_size": shard_size, "allow_nonfinite": allow_nonfinite})
        recipe = {
            "kind": "operator",
            "method": self.merged.method,
            "settings": dict(self.merged.settings),
            "models": [describe(model) for model in self.models],
            "dtype": dtype,
        }
        jobs = [_job(self, name, dtype) for name in self.names]
        problems, notes = zip(*(misfits(model.source, model.delta.changes) for model in self.models), strict=True)
        return make_plan(
            jobs,
            recipe,
            dtype=dtype,
            problems=[problem for of_model in problems for problem in of_model],
            notes=[*(note for of_model in notes for note in of_model), *self.guard_card.notes],
            shard_size=shard_size,
            allow_nonfinite=allow_nonfinite,
        )

    def save(
        self,
        out: str | Path,
        *,
        dtype: str = "auto",
        shard_size: int = DEFAULT_SHARD,
        allow_nonfinite: bool = False,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        overwrite: bool = False,
        progress: bool = True,
        executor: RayExecutor | None = None,
    ) -> Path:
        """Write it as a Hugging Face folder, in one streaming pass; see :meth:`.checkpoint.Checkpoint.save`."""
        plan = self.plan(dtype=dtype, shard_size=shard_size, allow_nonfinite=allow_nonfinite)
        self.guard_card.warn()
        used = dict.fromkeys(source for model in self.models for source in sources(model))
        text = f"Task vectors on {code(self.base.source.spec)} merged by `{self.merged.method}`."
        card = Card(f"A {self.merged.method} merge", text, roles={self.base.source: "base"})
        package = Package(self.base.source, tuple(used), card, files=self.guard_card.files)
        prepared = prepare(plan, package, Path(out), overwrite=overwrite)
        return prepared.write(threads=threads, memory=memory, progress=progress, executor=executor).folder


def function(name: str) -> Callable[..., MergedDelta]:
    """A method that merges task vectors, as a function of deltas.

    Raises:
        AttributeError: there is no such method, or only merge files can use it.
    """
    known = {method.name: method for method in methods()}
    method = known.get(name)
    if method is None:
        raise AttributeError(f"module 'weightops' has no attribute {name!r}{nearest(name, known)}")
    if method.takes == "models":
        raise AttributeError(
            f"{name} merges whole models, not task vectors, and is only used from a merge file: `merge_method: {name}`"
        )

    def merge(deltas: Sequence[Delta], **settings: Any) -> MergedDelta:
        return _merged(method, deltas, settings)

    merge.__name__, merge.__doc__ = name, method.function.__doc__
    return merge


def _call(merged: MergedDelta) -> str:
    vectors = ", ".join(sum_of(delta.changes) for delta in merged.deltas)
    return f"{merged.method}([{vectors}]" + "".join(f", {name}={value!r}" for name, value in merged.settings) + ")"


def _merged(method: Operator, deltas: Sequence[Delta], settings: dict[str, Any]) -> MergedDelta:
    fewest, most = method.models
    if not isinstance(deltas, Sequence) or not all(isinstance(delta, Delta) for delta in deltas):
        raise AlgebraError(f"{method.name} merges differences; write {method.name}([a - base, b - base]).on(base)")
    if len(deltas) < fewest or (most is not None and len(deltas) > most):
        raise AlgebraError(
            f"{method.name} merges {fewest} to {most or 'any number of'} task vectors; {len(deltas)} given"
        )
    checked = method.settings({name.rstrip("_"): value for name, value in settings.items()}, len(deltas))
    return MergedDelta(method.name, tuple(deltas), tuple(sorted(checked.items())))


def _job(checkpoint: MergedCheckpoint, name: str, dtype: str = "auto") -> Job:
    """One tensor as a job; the base's tensor if no delta changes it, or if it contains integers."""
    merged, base = checkpoint.merged, checkpoint.base
    plain = lower(base, name, dtype)
    lowered = [lower(model, name, dtype) for model in checkpoint.models]
    unchanged = all((job.anchor, job.terms) == (plain.anchor, plain.terms) for job in lowered)
    if plain.dtype not in FLOATS or not plain.count or unchanged:
        return plain
    place = layer_of(name)
    where = Place(name, place.index, stacks(base.names)[place.stack]) if place else Place(name)
    inputs = tuple(_input(_model_at(model, name, merged.method), name) for model in checkpoint.models)
    merge = Merge(merged.method, inputs, _input(base, name), merged.settings, where)
    merge = replace(merge, workspace=workspace(plain.shape, merge))
    return Job(name, plain.dtype, plain.shape, None, merge=merge)


def _model_at(checkpoint: Checkpoint, name: str, method: str) -> Checkpoint:
    """The model that a delta is the task vector of, for one tensor; a merge file would name this model.

    Args:
        checkpoint: The base plus the delta.

    Raises:
        AlgebraError: the delta is neither a model minus the base nor an adapter or a sparse delta.
    """
    changes = [change for change in checkpoint.delta.changes if name in change]
    added = Delta(tuple(change for change in changes if not isinstance(change.of, Difference)))
    differences = [(change.of, change.at(name)) for change in changes if isinstance(change.of, Difference)]
    if not differences:
        return Checkpoint(checkpoint.source, added)
    (of, coefficient), *more = differences
    if more or coefficient != 1.0 or of.subtrahend != checkpoint.source:
        raise AlgebraError(
            f"{name}: {method} merges plain task vectors, model - base, an adapter or a sparse delta, on the base they "
            "were taken from; save the scaled or added models first"
        )
    return Checkpoint(of.minuend, added)


def _input(model: Checkpoint, name: str) -> Input:
    """One model of a merge: its tensor, and the updates of its adapters and sparse deltas."""
    job = lower(model, name)
    if job.anchor is None or any(term.minus is not None for term in job.terms):
        raise AlgebraError(f"{name}: {model.spec} scales an adapter that replaces this tensor; save the model first")
    return Input(job.anchor, job.terms)
