"""The algebra: a checkpoint is a value, the difference of two is a delta, and a checkpoint plus deltas is a checkpoint.

Everything is lazy. A chain of ``+ - *`` is stored as one affine combination: an anchor and a list of (coefficient,
change). Differences are never written to disk, and near-equal pairs are subtracted before anything is added to them.

>>> import weightops as wo
>>> base, guard, target = wo.open("base"), wo.open("guard"), wo.open("target")
>>> target + 1.0 * (guard - base).only(r"\\.layers\\.").without("norm")
<Checkpoint: target + (guard - base).only('\\\\.layers\\\\.').without('norm'), 21 tensors>
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .. import dtypes
from ..engine.jobs import Job, Term
from ..engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan, check_options, make_plan
from ..errors import WeightopsError
from ..io.adapter import Adapter
from ..io.opened import Source
from ..io.weights import Weights
from ..output.modelcard import Card, code
from ..output.save import Package, prepare
from .changes import Change, Difference, collect, misfits, shares
from .cut_card import cut_card
from .guard_cards import CarriedCard, carried_card
from .rules import AlgebraError, Rule, Scale, Selector
from .shown import OneLine, share_of, sum_of
from .tensor_jobs import computed, terms_of

if TYPE_CHECKING:
    import torch

    from ..engine.ray_executor import RayExecutor


@dataclass(frozen=True, repr=False)
class Delta(OneLine):
    """A difference in weight space: a sum of changes. Add it to a checkpoint, scale it, restrict it."""

    changes: tuple[Change, ...] = ()

    def __repr__(self) -> str:
        return f"<Delta: {sum_of(self.changes)}, {share_of(self.changes)}>"

    def __add__(self, other: Delta) -> Delta:
        if isinstance(other, Checkpoint):
            return NotImplemented
        if not isinstance(other, Delta):
            raise AlgebraError(
                f"a delta plus {_name(other)} has no meaning; add deltas, or add a delta to a checkpoint"
            )
        return Delta(collect((*self.changes, *other.changes)))

    def __sub__(self, other: Delta) -> Delta:
        if not isinstance(other, Delta):
            raise AlgebraError(f"a delta minus {_name(other)} has no meaning; write checkpoint + delta")
        return self + -other

    def __mul__(self, scale: Scale) -> Delta:
        """Scale by a number, or tensor by tensor: a function of the name, or {regex: factor} (first match, else 1)."""
        if isinstance(scale, int | float):
            if not math.isfinite(scale):
                raise AlgebraError(f"a delta times {scale} has no meaning; scale it by a finite number")
            return Delta(collect(replace(change, coefficient=change.coefficient * scale) for change in self.changes))
        if not (isinstance(scale, Mapping) or callable(scale)):
            raise AlgebraError(
                f"a delta times {_name(scale)} has no meaning; scale it by a number, a function of "
                f"the name or {{regex: factor}}"
            )
        return self._with(Rule("scaled", tuple(scale.items()) if isinstance(scale, Mapping) else scale))

    __rmul__ = __mul__

    def __neg__(self) -> Delta:
        return self * -1.0

    def only(self, selector: Selector) -> Delta:
        """This delta, only for tensors whose name matches (``re.search``, or a function of the name)."""
        return self._with(Rule("only", selector))

    def without(self, selector: Selector) -> Delta:
        """This delta, without the tensors whose name matches."""
        return self._with(Rule("without", selector))

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor that the delta changes."""
        return frozenset(name for change in self.changes for name in change.names())

    def on(self, base: Checkpoint) -> Checkpoint:
        """The checkpoint ``base + self``."""
        return base + self

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor of the delta, computed now, fp32.

        Raises:
            WeightopsError: the delta does not change that tensor, or its operands do not fit.
        """
        raise_unknown(name, self.names)
        terms = terms_of(self, name)
        if not terms:
            raise WeightopsError(f"{name}: the adapter replaces this tensor, so only base + delta has a value for it")
        job = Job(name, "F32", terms[0].plus.shape, None, terms)
        make_plan([job], {}).check()
        return computed(job)

    def _with(self, rule: Rule) -> Delta:
        return Delta(tuple(replace(change, rules=(*change.rules, rule)) for change in self.changes))


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(OneLine):
    """A model's weights as a value: the weights of a source, plus a delta."""

    source: Weights
    delta: Delta = Delta()

    def __repr__(self) -> str:
        added = f" + {sum_of(self.delta.changes)}" if self.delta.changes else ""
        cut = f", layers {self.source.kept} of {self.source.kept.of}" if self.source.kept else ""
        return f"<Checkpoint: {self.source.spec}{added.replace('+ -', '- ')}{cut}, {len(self.names)} tensors>"

    @overload
    def __sub__(self, other: Checkpoint) -> Delta: ...

    @overload
    def __sub__(self, other: Delta) -> Checkpoint: ...

    def __sub__(self, other: Checkpoint | Delta) -> Delta | Checkpoint:
        if isinstance(other, Checkpoint):
            changes = () if other.source == self.source else (Change(Difference(self.source, other.source)),)
            return Delta(changes) + self.delta - other.delta
        if isinstance(other, Delta):
            return Checkpoint(self.source, self.delta - other)
        raise AlgebraError(f"a checkpoint minus {_name(other)} has no meaning; subtract a checkpoint or a delta")

    def __add__(self, other: Delta) -> Checkpoint:
        if isinstance(other, Checkpoint):
            raise AlgebraError(
                "checkpoint + checkpoint has no meaning; add a difference: a + (b - base), or a + "
                "0.5 * (b - a) for the mean"
            )
        if not isinstance(other, Delta):
            raise AlgebraError(f"a checkpoint plus {_name(other)} has no meaning; add a delta: a + (b - base)")
        return Checkpoint(self.source, self.delta + other)

    __radd__ = __add__

    def __mul__(self, other: object) -> Checkpoint:
        raise AlgebraError("a checkpoint cannot be scaled; scale a difference: base + 0.5 * (model - base)")

    __rmul__ = __mul__

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return tuple(self.source.tensors)

    @property
    def spec(self) -> str:
        """The name it was opened by, including the names of its adapters and sparse deltas."""
        added = [change.of.spec for change in self.delta.changes if not isinstance(change.of, Difference)]
        return "+".join([self.source.spec, *added])

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of its small files: those of what was added to it, the last first, then the source's."""
        added = [change.of.folder for change in reversed(self.delta.changes) if not isinstance(change.of, Difference)]
        return tuple(folder for folder in (*added, self.source.folder) if folder is not None)

    @cached_property
    def guard_card(self) -> CarriedCard:
        """The ``guard.json`` saved with it: that of the one guard that is added, if it is still valid."""
        return carried_card(self.source, shares(self.source, self.delta.changes))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        raise_unknown(name, self.source.tensors)
        return self.source.tensors[name].shape

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, computed now, in its stored dtype.

        Raises:
            WeightopsError: no such tensor, or its operands do not fit.
        """
        raise_unknown(name, self.source.tensors)
        job = lower(self, name)
        make_plan([job], {}).check()
        return computed(job)

    def plan(
        self,
        *,
        dtype: str = "auto",
        shard_size: int = DEFAULT_SHARD,
        allow_nonfinite: bool = False,
    ) -> Plan:
        """What saving would read and write, and the problems that prevent it; only headers are read.

        Args:
            dtype: ``auto`` (as stored), ``float64``, ``float32``, ``bfloat16`` or ``float16``.
            shard_size: Most bytes in a file.
            allow_nonfinite: Whether NaN and Inf may be written.

        Raises:
            WeightopsError: a value is not allowed.
        """
        check_options({"dtype": dtype, "shard_size": shard_size, "allow_nonfinite": allow_nonfinite})
        jobs = [lower(self, name, dtype) for name in self.source.tensors]
        problems, notes = misfits(self.source, self.delta.changes)
        return make_plan(
            jobs,
            describe(self, dtype),
            dtype=dtype,
            problems=problems,
            notes=[*(self.source.kept.notes if self.source.kept else ()), *notes, *self.guard_card.notes],
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
        """Write the checkpoint as a Hugging Face folder, in one streaming pass.

        Args:
            out: Folder to write.
            dtype: Dtype of the weights, as for :meth:`plan`.
            shard_size: Most bytes in a file.
            allow_nonfinite: Write NaN and Inf instead of refusing them.
            threads: Slices computed at the same time; by default one for each processor.
            memory: Most bytes of buffers.
            overwrite: Replace an existing model folder.
            progress: Show a bar with the time left on stderr once it takes more than two seconds.
            executor: Computes on a cluster; by default threads of this process compute.

        Returns:
            The folder.

        Raises:
            WeightopsError: every problem of the plan, or a failure while writing; ``out`` is then unchanged.
        """
        plan = self.plan(dtype=dtype, shard_size=shard_size, allow_nonfinite=allow_nonfinite)
        self.guard_card.warn()
        prepared = prepare(plan, package(self), Path(out), overwrite=overwrite)
        return prepared.write(threads=threads, memory=memory, progress=progress, executor=executor).folder


def lower(checkpoint: Checkpoint, name: str, dtype: str = "auto") -> Job:
    """One tensor of a checkpoint as a job for the engine."""
    stored = anchor = checkpoint.source.tensors[name]
    output = dtypes.FROM_TORCH.get(dtype, stored.dtype) if stored.dtype in dtypes.FLOATS else stored.dtype
    terms = list(terms_of(checkpoint.delta, name))
    for change in checkpoint.delta.changes:
        if isinstance(change.of, Adapter) and (whole := change.of.replaced.get(name)) and change.at(name):
            if change.at(name) == 1.0:
                anchor = whole
            else:
                terms.append(Term(change.at(name), whole, stored))
    return Job(name, output, stored.shape, anchor, tuple(terms))


def describe(checkpoint: Checkpoint, dtype: str = "auto") -> dict[str, Any]:
    """The canonical recipe of a checkpoint, as JSON values."""

    def change(part: Change) -> dict[str, Any]:
        if isinstance(part.of, Difference):
            what: dict[str, Any] = {"plus": part.of.minuend.spec, "minus": part.of.subtrahend.spec}
        else:
            what = {"adapter" if isinstance(part.of, Adapter) else "delta": part.of.spec}
        rules = [rule.describe(checkpoint.names) for rule in part.rules]
        return what | {"coefficient": part.coefficient, "rules": rules}

    kept = checkpoint.source.kept
    return {
        "kind": "affine",
        "anchor": checkpoint.source.spec,
        **({"layers": list(kept.numbers)} if kept else {}),
        "changes": [change(c) for c in checkpoint.delta.changes],
        "dtype": dtype,
    }


def sources(checkpoint: Checkpoint) -> tuple[Source, ...]:
    """All models, adapters and sparse deltas of the checkpoint, each once, the anchor first."""
    unique: dict[Source, None] = {checkpoint.source: None}
    for change in checkpoint.delta.changes:
        if isinstance(change.of, Difference):
            unique.update({change.of.minuend: None, change.of.subtrahend: None})
        else:
            unique[change.of] = None
    return tuple(unique)


def roles(models: Mapping[str, Checkpoint]) -> dict[Source, str]:
    """The role of each source of some models, in the words of a model card.

    Args:
        models: By role: guard, base, target.
    """
    words: dict[Source, list[str]] = {}
    for role, model in models.items():
        for source in sources(model):
            if not isinstance(source, Weights):
                word = f"{'adapter' if isinstance(source, Adapter) else 'sparse delta'} of the {role}"
            else:
                word = role if not model.delta.changes else f"part of the {role}"
            words.setdefault(source, []).append(word)
    plain = {source: [word for word in texts if word in models] for source, texts in words.items()}
    return {source: ", ".join(plain[source] or texts) for source, texts in words.items()}


def package(checkpoint: Checkpoint) -> Package:
    """The files beside a checkpoint's weights: the source's configuration and tokenizer, a model card, a guard card."""
    card = (
        cut_card(checkpoint.source, sources(checkpoint))
        if checkpoint.source.kept
        else Card(
            "A checkpoint made by weight arithmetic",
            f"Made from {code(checkpoint.source.spec)} by adding differences of other checkpoints.",
            roles={checkpoint.source: "base"},
        )
    )
    return Package(checkpoint.source, sources(checkpoint), card, files=checkpoint.guard_card.files)


def raise_unknown(name: str, known: Any) -> None:
    """Raise if a tensor name is not among the known ones."""
    if name not in known:
        raise WeightopsError(
            f"no tensor {name!r}; there are {len(known)}, for example {next(iter(sorted(known)), 'none')}"
        )


def _name(value: object) -> str:
    return type(value).__name__
