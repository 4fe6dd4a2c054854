"""Several sparse deltas of one base as one, entry by entry: no tensor is made dense.

The result's entries are the union of the operands'. An operand that lacks an entry counts as zero there, except in
localize-and-stitch, which averages only the operands that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import dtypes
from ..engine import kernels
from ..errors import Message, Remedy, WeightopsError, short
from ..io.sparse_delta import DeltaMetadata, SparseDelta, made_by
from ..ops.sparsify import kept_count, largest, numbers
from ..ops.ties import agreeing_sum
from .delta_file import Entries, load_entries, write_delta
from .reverting import open_delta

#: Values of the operands on the union of their entries, [n, u] fp32, and which of them have the entry, [n, u].
Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def _sum(values: Tensor, has: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum(0)


def _mean(values: Tensor, has: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum(0) / weights.sum()


def _stitch(values: Tensor, has: Tensor, weights: Tensor) -> Tensor:
    """Localize-and-stitch (arXiv 2408.13656): the mean of those whose mask holds the entry."""
    total = (weights * has).sum(0)
    return (weights * values).sum(0) / total.where(total != 0, 1)


def _ties(values: Tensor, has: Tensor, weights: Tensor) -> Tensor:
    """TIES (arXiv 2306.01708) of what was kept: the sum of those with the elected sign, by their summed weights."""
    return agreeing_sum(values, weights.reshape(-1), True, 1.0)


METHODS: Final[Mapping[str, Combine]] = {"sum": _sum, "mean": _mean, "ties": _ties, "localize-and-stitch": _stitch}


@dataclass(frozen=True, eq=False)
class MergedEntries:
    """A merge of sparse deltas as a value; lazy until :meth:`save`.

    Attributes:
        weights: Coefficient of each operand.
        density: For ties, the share of a whole tensor that each operand keeps: its largest entries.
        dtype: Of the values that are written.
    """

    operands: tuple[SparseDelta, ...]
    method: str
    weights: tuple[float, ...]
    density: float
    dtype: str
    made: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({name for operand in self.operands for name in operand.tensors}))

    @property
    def most_entries(self) -> int:
        return sum(operand.entries for operand in self.operands)

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the merged delta, one tensor at a time.

        Raises:
            WeightopsError: a delta holds NaN or Inf, or ``out`` cannot be written.
        """
        about = DeltaMetadata("add", self.operands[0].about.base, self.made)
        return write_delta(Path(out), self.entries(), about, overwrite=overwrite)

    def entries(self) -> Iterator[Entries]:
        """The merged entries of each tensor."""
        for name in self.names:
            present = [operand.tensors.get(name) for operand in self.operands]
            loaded = [None if tensor is None else load_entries(tensor) for tensor in present]
            yield self._merged(loaded)

    def _merged(self, operands: Sequence[Entries | None]) -> Entries:
        there = [one for one in operands if one is not None]
        union = np.unique(np.concatenate([one.indices for one in there]))
        values, has = np.zeros((len(operands), len(union)), np.float32), np.zeros((len(operands), len(union)), np.bool_)
        for row, one in enumerate(operands):
            if one is not None:
                places = np.searchsorted(union, one.indices)
                values[row, places], has[row, places] = differences(one, self._replaces(row)), True
        stack = torch.from_numpy(values)
        if self.method == "ties":
            stack = self._trimmed(stack, dtypes.count(there[0].shape))
        weights = torch.tensor(numbers(self.weights, len(operands))).reshape(-1, 1)
        merged = METHODS[self.method](stack, torch.from_numpy(has).float(), weights).numpy()
        raw = kernels.narrow(np.ascontiguousarray(merged, np.float32), self.dtype)
        if kernels.holds_nonfinite(raw, self.dtype):
            what = f"{there[0].name}: {self.method} gives NaN or Inf in {self.dtype}"
            raise WeightopsError(Message(what, Remedy("choose another {}", "dtype"), Remedy("check the deltas")))
        return replace(there[0], indices=union, values=raw, values_dtype=self.dtype, originals=_originals(there, union))

    def _trimmed(self, stack: Tensor, count: int) -> Tensor:
        """Each operand's largest entries, as many as TIES keeps of the whole tensor; at least one."""
        most = max(kept_count(self.density, count), 1)
        return torch.stack([row.where(largest(row.abs(), most), 0) for row in stack])

    def _replaces(self, operand: int) -> bool:
        return self.operands[operand].about.semantics == "replace"


def merge_sparse(
    deltas: Sequence[str | Path],
    *,
    method: str = "mean",
    weights: Sequence[float] | None = None,
    density: float = 1.0,
    dtype: str = "auto",
    command: str | None = None,
) -> MergedEntries:
    """Plan a merge of sparse deltas of one base.

    Args:
        deltas: Files, or folders that hold one.
        method: One of :data:`METHODS`.
        weights: Coefficient of each; 1 by default.
        density: For ties: the share of each whole tensor that a delta keeps.
        dtype: Of the values; ``auto`` is the operands', or ``float32`` if they differ.
        command: The command line, for the file's metadata.

    Raises:
        WeightopsError: a setting is wrong, a delta cannot be opened, or the deltas are of different bases.
    """
    if method not in METHODS:
        raise WeightopsError(f"unknown method {method!r}; available: {', '.join(METHODS)}")
    if not deltas:
        raise WeightopsError(Message("no deltas to merge", Remedy("name at least one as {}", "deltas")))
    if not 0 < density <= 1:
        raise WeightopsError(f"density must be in (0, 1], not {density:g}")
    if weights is not None and (len(weights) != len(deltas) or not np.isfinite(weights).all()):
        raise WeightopsError(f"{len(weights)} weights for {len(deltas)} deltas; give one finite number for each")
    if method == "mean" and weights is not None and not sum(weights):
        raise WeightopsError("the weights of a mean must not sum to 0")
    operands = tuple(open_delta(delta) for delta in deltas)
    if problems := [*_other_bases(operands), *not_additive(operands)]:
        raise WeightopsError(*problems)
    stored = {t.values.dtype for operand in operands for t in operand.tensors.values()}
    name = (stored.pop() if len(stored) == 1 else "F32") if dtype == "auto" else dtypes.FROM_TORCH.get(dtype)
    if name is None:
        raise WeightopsError(f"dtype must be auto, float32, bfloat16 or float16, not {dtype!r}")
    given = tuple(float(weight) for weight in weights) if weights is not None else (1.0,) * len(operands)
    recipe = {
        "kind": "merge",
        "method": method,
        "deltas": [str(d) for d in deltas],
        "weights": given,
        "density": density,
    }
    made = made_by(recipe, command)
    return MergedEntries(operands, method, given, density, name, made)


def differences(entries: Entries, replaces: bool) -> npt.NDArray[np.float32]:
    """What entries add to the base, fp32."""
    values = kernels.widen(entries.values, entries.values_dtype).astype(np.float32)
    if not replaces or entries.originals is None:
        return values
    return values - kernels.widen(entries.originals, entries.dtype).astype(np.float32)


def _originals(operands: Sequence[Entries], union: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
    """The base's entries on the union, if every operand holds its own."""
    size = dtypes.itemsize(operands[0].dtype)
    merged = np.empty((len(union), size), np.uint8)
    for one in operands:
        if one.originals is None:
            return None
        merged[np.searchsorted(union, one.indices)] = one.originals.reshape(-1, size)
    return merged.reshape(-1)


def _other_bases(operands: Sequence[SparseDelta]) -> list[str]:
    """A line where two deltas were not made for one base."""
    first: dict[str, tuple[SparseDelta, tuple[Any, ...]]] = {}
    for operand in operands:
        for name, tensor in operand.tensors.items():
            told = (tensor.shape, tensor.dtype, tensor.base_digest)
            other, same = first.setdefault(name, (operand, told))
            if same != told:
                what = f"{operand.spec} and {other.spec} are for different bases: {short(name)} is not the same in both"
                return [f"{what}; merge deltas of one base"]
    return []


def not_additive(operands: Sequence[SparseDelta]) -> list[str]:
    """A line for each delta whose values are no differences and cannot be turned into them."""
    return [
        f"{operand.spec}: its values replace the base's and it does not hold those; extract it with the base's entries "
        "(originals), or extract differences"
        for operand in operands
        if operand.about.semantics == "replace"
        and not (operand.revertible and all(t.dtype in dtypes.FLOATS for t in operand.tensors.values()))
    ]
