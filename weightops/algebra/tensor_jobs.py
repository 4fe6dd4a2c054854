"""What the engine computes for one tensor of an expression, and the result as a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import dtypes
from ..engine.execute import compute
from ..engine.jobs import Job, LowRank, Scattered, Term
from ..engine.whole_models import Grams
from ..io.sparse_delta import SparseDelta
from .changes import Difference

if TYPE_CHECKING:
    import torch

    from .checkpoint import Delta


def terms_of(delta: Delta, name: str) -> tuple[Term, ...]:
    """The terms that a delta adds to one tensor."""
    terms: list[Term] = []
    for change in delta.changes:
        coefficient = change.at(name)
        if not coefficient:
            continue
        if isinstance(change.of, Difference):
            plus, minus = change.of.minuend.tensors.get(name), change.of.subtrahend.tensors.get(name)
            if plus is not None and minus is not None:
                terms.append(Term(coefficient, plus, minus))
        elif isinstance(change.of, SparseDelta):
            if name in change.of.tensors:
                terms.append(Term(coefficient, _scattered(change.of, name)))
        elif update := change.of.updates.get(name):
            rows, columns = update.left.shape[0], update.right.shape[1]
            shape = (columns, rows) if update.transposed else (rows, columns)
            terms.append(
                Term(coefficient, LowRank(name, update.left, update.right, update.scale, shape, update.transposed))
            )
    return tuple(terms)


def _scattered(delta: SparseDelta, name: str) -> Scattered:
    """One tensor of a sparse delta as an operand, bound to the base that it was opened with."""
    tensor, replaces = delta.tensors[name], delta.about.semantics == "replace"
    of = delta.base.tensors.get(name) if delta.base else None
    digest = None if delta.reverts else tensor.base_digest
    return Scattered(name, tensor.shape, tensor.positions, tensor.values, of, digest, replaces)


def computed(job: Job, grams: Grams | None = None) -> torch.Tensor:
    """A job's result as a tensor; see :func:`weightops.engine.execute.compute` for ``grams``."""
    import torch

    if not job.count:
        return torch.empty(job.shape, dtype=torch_dtype(job.dtype))
    raw = torch.from_numpy(compute(job, grams))
    return raw.view(torch_dtype(job.dtype)).reshape(job.shape)


def torch_dtype(name: str) -> torch.dtype:
    import torch

    others = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "C64": "complex64"}
    long = {"U": "uint", "I": "int"}
    return getattr(torch, dtypes.TO_TORCH.get(name) or others.get(name) or long[name[0]] + name[1:])  # type: ignore[no-any-return]
