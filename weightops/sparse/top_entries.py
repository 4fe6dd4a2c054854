"""A sparse delta taken out of a change: the entries of largest size, or exactly those that differ.

Larger first; among equals the tensor that is first in order of name, then the lower flat position. An entry that did
not change is never kept. Thresholds are exact and come from two histograms, as in the engine's merge methods
(:mod:`weightops.engine.fused.select`), so nothing is sorted and memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..algebra.checkpoint import Checkpoint, Delta, lower
from ..algebra.opening import Opener, not_plain
from ..engine import kernels
from ..engine.exact_reads import read_tensor
from ..engine.execute import streamed
from ..engine.fused.select import Selection, positions_of, select
from ..engine.jobs import Job, Term
from ..engine.plan import make_plan
from ..engine.tally import tensor_digest
from ..errors import Message, Remedy, WeightopsError, short
from ..io.progress import Progress
from ..io.safetensors import StoredTensor
from ..io.sparse_delta import DeltaMetadata, made_by
from .delta_file import Entries, place_problem, write_delta

Floats = npt.NDArray[np.float32]
Report = Callable[[int], None]
#: Where the share of entries is taken: in each tensor, or in all tensors together.
Scope = Literal["per-tensor", "global"]


@dataclass(frozen=True, eq=False)
class SparseExtraction:
    """Entries to take out of a change, as a value; lazy until :meth:`save`.

    Attributes:
        base: The plain model that the delta is for.
        change: What was added to it, for entries of largest size.
        density: Share of the entries to keep.
        tuned: For an exact delta, the model that base and delta must give, bit for bit.
        originals: Keep the base's entries, so that the delta can be reverted.
        values: Dtype of the values; ``auto`` is that of each tensor of the base.
        made: How it was made, for the file's metadata.
    """

    base: Checkpoint
    change: Delta
    density: float
    scope: Scope
    tuned: Checkpoint | None
    originals: bool
    values: str
    made: Mapping[str, Any]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors that are compared, in order of name."""
        if self.tuned is not None:
            return tuple(sorted(name for name in self.base.names if self.base.source.tensors[name].count))
        stored = self.base.source.tensors
        return tuple(
            sorted(n for n in self.change.names if n in stored and stored[n].dtype in dtypes.FLOATS and stored[n].count)
        )

    @property
    def count(self) -> int:
        """Elements of the tensors that are compared."""
        return sum(self.base.source.tensors[name].count for name in self.names)

    @property
    def most_entries(self) -> int:
        """How many entries the delta has at most."""
        if self.tuned is not None:
            return self.count
        if self.scope == "global":
            return kept(self.density, self.count)
        return sum(kept(self.density, self.base.source.tensors[name].count) for name in self.names)

    @cached_property
    def plan_problems(self) -> tuple[str, ...]:
        """What prevents taking the entries out, as headers show it."""
        jobs = [self._result(name) if self.tuned is not None else self._difference(name) for name in self.names]
        return make_plan(jobs, {}).problems

    def problems(self, out: Path, *, overwrite: bool = False) -> list[str]:
        """What prevents writing it to a file."""
        place = place_problem(out, overwrite=overwrite)
        return [*self.plan_problems, *([] if place is None else [place])]

    def save(self, out: str | Path, *, overwrite: bool = False, progress: bool = True) -> Path:
        """Write the delta file, in one pass over an exact change, or three over another.

        Raises:
            WeightopsError: what prevents it, NaN or Inf in a model, or nothing has changed; ``out`` is then unchanged.
        """
        out = Path(out)
        if problems := self.problems(out, overwrite=overwrite):
            raise WeightopsError(*problems)
        about = DeltaMetadata("add" if self.tuned is None else "replace", self.base.spec, self.made)
        passes = 1 if self.tuned is not None else 3
        with Progress(passes * self.count, f"writing {out.name}", unit=" elements", shown=progress) as bar:
            entries = self._exact(bar.update) if self.tuned is not None else self._largest(bar.update)
            return write_delta(out, entries, about, overwrite=overwrite)

    def _largest(self, report: Report) -> Iterator[Entries]:
        """The largest entries of the change, block by block."""
        groups = [self.names] if self.scope == "global" else [(name,) for name in self.names]
        for group in groups:
            count = sum(self.base.source.tensors[name].count for name in group)
            passes = partial(self._stacks, group, report)
            ((selection,),) = select(passes, count, [[kept(self.density, count)]])
            if selection.threshold in (-1, 1 << 31):
                report(2 * count)  # everything or nothing is kept, which took no pass
            yield from self._selected(group, selection, report)

    def _selected(self, names: Sequence[str], selection: Selection, report: Report) -> Iterator[Entries]:
        ties = selection.ties
        for name in names:
            stored = self.base.source.tensors[name]
            digest, room = "", np.empty(0, np.int64)
            for begin, block in self._blocks(name, report):
                room = room if len(room) >= len(block) else np.empty(len(block), np.int64)
                count, ties = positions_of(block, selection.threshold, ties, room)
                if count:
                    digest = digest or tensor_digest(stored)
                    places = room[:count].copy()
                    yield self._entries(stored, digest, begin, places, block[places])

    def _entries(
        self, stored: StoredTensor, digest: str, begin: int, places: npt.NDArray[np.int64], values: Floats
    ) -> Entries:
        dtype = stored.dtype if self.values == "auto" else dtypes.FROM_TORCH[self.values]
        raw = kernels.narrow(values, dtype)
        if kernels.holds_nonfinite(raw, dtype):
            what = f"{stored.name}: a difference is too large for {dtype}"
            raise WeightopsError(Message(what, Remedy("choose another {}", "dtype")))
        block = _stored_block(stored, begin, int(places[-1]) + 1) if self.originals else None
        originals = None if block is None else block[places].reshape(-1)
        return Entries(stored.name, stored.shape, stored.dtype, digest, begin + places, raw, dtype, originals)

    def _exact(self, report: Report) -> Iterator[Entries]:
        """Every entry whose bytes differ."""
        for name in self.names:
            stored, digest = self.base.source.tensors[name], ""
            for begin, raw in streamed(self._result(name)):
                after = raw.reshape(-1, dtypes.itemsize(stored.dtype))
                before = _stored_block(stored, begin, len(after))
                places = np.flatnonzero((before != after).any(1))
                if len(places):
                    digest = digest or tensor_digest(stored)
                    originals = before[places].reshape(-1) if self.originals else None
                    yield Entries(
                        name, stored.shape, stored.dtype, digest, begin + places, after[places].reshape(-1),
                        stored.dtype, originals,
                    )  # fmt: skip
                report(len(after))

    def _stacks(self, names: Sequence[str], report: Report) -> Iterable[Floats]:
        """A pass over the change of some tensors, as a stack of one row."""
        return (block[None] for name in names for _, block in self._blocks(name, report))

    def _blocks(self, name: str, report: Report) -> Iterator[tuple[int, Floats]]:
        for begin, raw in streamed(self._difference(name)):
            block = raw.view(np.float32)
            yield begin, block
            report(len(block))

    def _difference(self, name: str) -> Job:
        """The change of one tensor as a job, fp32."""
        stored = self.base.source.tensors[name]
        job = lower(Checkpoint(self.base.source, self.change), name)
        whole = () if job.anchor in (None, stored) else (Term(1.0, job.anchor, stored),)
        return Job(name, "F32", job.shape, None, (*whole, *job.terms))

    def _result(self, name: str) -> Job:
        return lower(self.base if self.tuned is None else self.tuned, name)


def extract_sparse(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    *,
    density: float | None = None,
    scope: Scope = "per-tensor",
    exact: bool = False,
    originals: bool = False,
    exclude: Sequence[str] = (),
    dtype: str = "auto",
    command: str | None = None,
) -> SparseExtraction:
    """Plan the extraction of a sparse delta from a tuned model; only headers are read.

    Args:
        base: The plain model that the delta is for.
        tuned: A model of the same tensors; ``BASE+ADAPTER`` too.
        density: Share of the entries to keep, in (0, 1]: those whose difference is largest.
        scope: Take the share in each tensor, or in all tensors together.
        exact: Keep every entry that differs, so that base and delta give ``tuned`` bit for bit.
        originals: Keep the base's entries too, so that the delta can be reverted without the base.
        exclude: Regular expressions of names of tensors to leave out; not with ``exact``.
        dtype: Of the differences: ``auto`` (the base's), ``float32``, ``bfloat16`` or ``float16``.
        command: The command line, for the file's metadata.

    Raises:
        WeightopsError: a setting is wrong, a model cannot be opened, or the two do not fit.
    """
    problems: list[str] = []
    if exact == (density is not None):
        what = "either a density or exact, not both" if exact else "no density for the delta"
        problems.append(Message(what, Remedy("give {}", "density"), Remedy("give {}", "exact", True)))
    if density is not None and not 0 < density <= 1:
        problems.append(f"density must be in (0, 1], not {density:g}")
    if scope not in ("per-tensor", "global"):
        problems.append(f"scope must be per-tensor or global, not {scope!r}")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        problems.append(f"dtype must be auto, float32, bfloat16 or float16, not {dtype!r}")
    if exact and exclude:
        problems.append(Message("an exact delta leaves nothing out", Remedy("do not give {}", "exclude")))
    if problems:
        raise WeightopsError(*problems)
    opener = Opener()
    one, other = (each if isinstance(each, Checkpoint) else opener.open(each) for each in (base, tuned))
    recipe = {
        "kind": "exact" if exact else "largest", "base": one.spec, "tuned": other.spec, "density": density,
        "scope": scope, "exclude": list(exclude), "dtype": dtype,
    }  # fmt: skip
    made = made_by(recipe, command)
    change: Delta = other - one
    for pattern in exclude:
        change = change.without(pattern)
    extraction = sparse_part(one, change, density or 1.0, scope, originals=originals, dtype=dtype, made=made)
    if exact:
        extraction = replace(extraction, tuned=other)
        if problems := _not_exact(one, other):
            raise WeightopsError(*problems)
    if not extraction.names:
        raise WeightopsError(
            f"{one.spec} and {other.spec} have no float tensor that differs; is one tuned from the other?"
        )
    return extraction


def sparse_part(
    base: Checkpoint,
    change: Delta,
    density: float,
    scope: Scope,
    *,
    originals: bool = False,
    dtype: str = "auto",
    made: Mapping[str, Any],
) -> SparseExtraction:
    """The entries of largest size of a change to a base; see :class:`SparseExtraction`.

    Raises:
        WeightopsError: the base is no plain model.
    """
    if problem := not_plain(base, "a sparse delta"):
        raise WeightopsError(problem)
    return SparseExtraction(base, change, density, scope, None, originals, dtype, made)


def _not_exact(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Why no delta on the base gives the tuned model bit for bit: the first tensor that says so."""
    for name in sorted({*base.names, *tuned.names}):
        here, there = base.source.tensors.get(name), tuned.source.tensors.get(name)
        if here is None or there is None:
            problem = f"{short(name)}: only in {(tuned if here is None else base).spec}"
        elif (here.dtype, here.shape) != (there.dtype, there.shape):
            was, now = f"{here.dtype} {list(here.shape)}", f"{there.dtype} {list(there.shape)}"
            problem = f"{short(name)}: {was} in {base.spec}, {now} in {tuned.spec}"
        else:
            continue
        return [f"{problem}; an exact delta needs two models of the same tensors"]
    return []


def _stored_block(stored: StoredTensor, begin: int, count: int) -> npt.NDArray[np.uint8]:
    """The bytes of some elements of a stored tensor: [count, bytes of an element]."""
    return read_tensor(stored, begin, count).reshape(count, -1)


def kept(density: float, count: int) -> int:
    """How many of some entries a density keeps: int(density * count), at least one."""
    return min(max(int(density * count), 1), count)
