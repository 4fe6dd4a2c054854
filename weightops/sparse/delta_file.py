"""Writing a delta file: entries as they are computed, then a file with its header, put in place when it is complete."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..engine.exact_reads import read_tensor
from ..engine.jobs import BLOCK
from ..engine.tally import tensor_digest
from ..errors import WeightopsError, short
from ..io.output_lock import new_output
from ..io.replacing import exists_already, not_replaced
from ..io.safetensors import StoredTensor, build_header
from ..io.sparse_delta import (
    KEY,
    DeltaMetadata,
    Described,
    SparseTensor,
    describe_tensors,
    is_sparse_delta,
    position_fault,
)
from ..io.spool import TensorSpool
from ..io.stored_positions import PACKED, WIDE, counts_of_blocks, packed

if TYPE_CHECKING:
    from torch import Tensor

_PART: Final = "delta.part"


@dataclass(frozen=True)
class Entries:
    """Some entries of one tensor, in memory.

    Attributes:
        shape: Of the base's tensor.
        dtype: Of the base's tensor, safetensors name.
        base_digest: Content digest of the base's tensor.
        indices: Flat positions in C order, [k], sorted, each once.
        values: Bytes of k elements of ``values_dtype``.
        originals: Bytes of k elements of ``dtype``: the base's entries there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    base_digest: str
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.uint8]
    values_dtype: str
    originals: npt.NDArray[np.uint8] | None = None

    def check(self) -> None:
        """Refuse what a reader would refuse.

        Raises:
            WeightopsError: the positions are wrong, or there is another number of values or originals.
        """
        problem = position_fault(self.indices, -1, dtypes.count(self.shape))
        parts = {"values": (self.values, self.values_dtype), "originals": (self.originals, self.dtype)}
        for what, (data, dtype) in parts.items():
            if problem is None and data is not None and data.nbytes != len(self.indices) * dtypes.itemsize(dtype):
                held = data.nbytes // dtypes.itemsize(dtype)
                problem = f"{len(self.indices)} positions but {held} {what}"
        if problem:
            raise WeightopsError(f"{short(self.name)}: {problem}; give one value for each sorted position")


def entries_of(base: StoredTensor, indices: Tensor, values: Tensor, originals: Tensor | None = None) -> Entries:
    """Entries that torch holds, of a stored tensor of the base.

    Args:
        base: The tensor that the entries belong to; it is read once, for its digest.
        indices: Flat positions, [k], integers, sorted, each once.
        values: [k]; see :data:`weightops.io.sparse_delta.Semantics`.
        originals: The base's entries, [k], in its dtype.

    Raises:
        WeightopsError: the positions are wrong, or there is another number of values or originals.
    """
    kept = None if originals is None else _bytes(originals)
    values_dtype = dtypes.FROM_TORCH[str(values.dtype).removeprefix("torch.")]
    where = indices.detach().cpu().numpy().astype(np.int64)
    made = Entries(
        base.name, base.shape, base.dtype, tensor_digest(base), where, _bytes(values), values_dtype, kept
    )  # fmt: skip
    made.check()
    return made


def load_entries(tensor: SparseTensor) -> Entries:
    """The entries of one tensor of a delta file, read into memory.

    Raises:
        WeightopsError: the file has changed since it was opened.
    """
    indices = np.concatenate([np.empty(0, np.int64), *tensor.positions.chunks()])
    originals = None if tensor.originals is None else read_tensor(tensor.originals)
    made = Entries(
        tensor.name, tensor.shape, tensor.dtype, tensor.base_digest, indices, read_tensor(tensor.values),
        tensor.values.dtype, originals,
    )  # fmt: skip
    made.check()
    return made


def write_delta(out: Path, entries: Iterable[Entries], about: DeltaMetadata, *, overwrite: bool = False) -> Path:
    """Write a delta file. It gets its place when it is complete.

    Args:
        out: The file, ending in ``.safetensors``.
        entries: Of each changed tensor, taken one at a time; those without positions are left out. The entries of one
            tensor may come in several pieces, one after the other, in the order of their positions.
        overwrite: Replace an existing delta file.

    Raises:
        WeightopsError: there are no entries, they are wrong, or ``out`` is in use or exists.
    """
    if problem := place_problem(out, overwrite=overwrite):
        raise WeightopsError(problem)
    with (
        new_output(out, _PART, overwrite=overwrite, why_not=_refusal) as part,
        tempfile.TemporaryFile(dir=part.parent) as waiting,
        open(part, "xb") as file,
    ):
        _write(file, *_spooled(entries, waiting), about)
        file.flush()
        os.fsync(file.fileno())
    return out


def place_problem(out: Path, *, overwrite: bool) -> str | None:
    """Why a delta file cannot be written to a path; ``None`` if it can."""
    if out.suffix != ".safetensors":
        return f"{out}: a delta is a .safetensors file; choose a name that ends so"
    if not os.path.lexists(out):
        return None
    return _refusal(out) if overwrite else exists_already(out)


def _refusal(out: Path) -> str | None:
    """The reason why a file may not be replaced; ``None`` if it is a delta file."""
    if not os.path.lexists(out):
        return None
    try:
        if stat.S_ISREG(os.lstat(out).st_mode) and is_sparse_delta(out):
            return None
    except WeightopsError:
        pass
    return not_replaced(out, "it is not a sparse delta")


def _spooled(entries: Iterable[Entries], stream: IO[bytes]) -> tuple[TensorSpool, dict[str, Described]]:
    """Every tensor's parts on disk, and what the metadata says of each."""
    spool, described = TensorSpool(stream), dict[str, Described]()
    blocks: dict[str, npt.NDArray[np.int64]] = {}
    before, current = -1, None
    for one in entries:
        if not len(one.indices):
            continue
        before = before if one.name == current else -1
        if one.name in described and (one.name != current or one.indices[0] <= before):
            raise WeightopsError(f"{short(one.name)}: is listed twice; give the entries of a tensor once, in order")
        one.check()
        _spool(spool, one)
        blocks[one.name] = blocks.get(one.name, 0) + counts_of_blocks(one.indices, dtypes.count(one.shape))
        described[one.name] = (one.shape, one.dtype, one.base_digest)
        before, current = int(one.indices[-1]), one.name
    if not described:
        raise WeightopsError("nothing to write: the delta has no entries; check that the inputs are the ones you mean")
    for name, counts in blocks.items():
        ends = np.cumsum(counts)
        wide = int(ends[-1]) >= WIDE
        spool.append(f"{name}.ends", "I64" if wide else "I32", ends.shape, ends.astype("<i8" if wide else "<i4"))
    return spool, described


def _spool(spool: TensorSpool, one: Entries) -> None:
    count = (len(one.indices),)
    spool.append(f"{one.name}.idx", PACKED, count, packed(one.indices))
    spool.append(f"{one.name}.val", one.values_dtype, count, one.values)
    if one.originals is not None:
        spool.append(f"{one.name}.orig", one.dtype, count, one.originals)


def _write(file: IO[bytes], spool: TensorSpool, described: Mapping[str, Described], about: DeltaMetadata) -> None:
    text = json.dumps(describe_tensors(described, about), ensure_ascii=False, separators=(",", ":"))
    head, offsets = build_header(spool.tensors, {KEY: text})
    file.write(head)
    for name, offset in offsets.items():
        file.seek(offset)
        for data in spool.blocks(name, BLOCK):
            file.write(data)


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    import torch

    raw: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw
