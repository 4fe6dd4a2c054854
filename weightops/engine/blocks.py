"""The inputs of a merge as fp32 blocks; a method may iterate over them several times.

A tensor that fits into the thread's share of memory is widened once and kept; a larger one is read again in every pass.
The blocks are the same in both cases, so the result does not depend on memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from .. import dtypes
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from . import kernels
from .exact_reads import read_elements
from .jobs import BLOCK, Input, Job, LowRank, Scattered
from .low_rank_kernel import low_rank
from .scatter import add_entries
from .slices import factor, nonfinite

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """Some consecutive elements of every input.

    Attributes:
        begin: First element.
        stack: The method's input, models or task vectors: [n, length], fp32. A method may overwrite it in its last
            pass; what it overwrites earlier, the next pass sees if the blocks are kept (:attr:`Blocks.kept`).
        base: The base's elements, [length], or ``None``.
    """

    begin: int
    stack: Floats
    base: Floats | None

    @property
    def length(self) -> int:
        return int(self.stack.shape[1])


class Room:
    """A thread's memory for merges, reused for all tensors: allocating new pages costs more than the arithmetic."""

    def __init__(self) -> None:
        self._arrays: dict[str, Floats] = {}

    def take(self, role: str, size: int) -> Floats:
        """Uninitialised memory for a role, [size]; the same at each call unless it must grow."""
        if role not in self._arrays or self._arrays[role].size < size:
            self._arrays[role] = np.empty(size, np.float32)
        return self._arrays[role][:size]


class GridDigest:
    """The content digest of bytes that arrive in pieces of any size: BLAKE3 of the digests of blocks."""

    def __init__(self, dtype: str) -> None:
        self._size = BLOCK * dtypes.itemsize(dtype)
        self._total, self._block, self._left = blake3(), blake3(), self._size

    def update(self, data: Any) -> None:
        """Add bytes."""
        while len(data):
            piece, data = data[: self._left], data[self._left :]
            self._block.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._close()

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""
        if self._left < self._size:
            self._close()
        return self._total.hexdigest()

    def _close(self) -> None:
        self._total.update(self._block.digest())
        self._block, self._left = blake3(), self._size


class Blocks:
    """A merge job's inputs; iterate for a pass.

    Attributes:
        count: Elements of the tensor.
        row: Length of its last dimension.
        models: Number of merged models.
        digests: Content digest of each input that was read completely; filled after the first pass.
    """

    def __init__(
        self,
        job: Job,
        files: Mapping[Path, int],
        memory: int,
        room: Room | None = None,
        *,
        deltas: bool,
        rows: bool = False,
        allow_nonfinite: bool = False,
    ) -> None:
        """``deltas``: subtract the base from the models. ``rows``: never split a row of the last dimension."""
        self._allow_nonfinite = allow_nonfinite
        if job.merge is None:
            raise TypeError(f"{job.name} is no merge")
        self.count, self.models = job.count, len(job.merge.inputs)
        self.row = max(job.shape[-1], 1) if job.shape else 1
        self.digests: dict[StoredTensor, str] = {}
        self._job, self._merge, self._files, self._deltas = job, job.merge, files, deltas
        rows = rows or any(source.rows for source in job.merge.all_inputs)
        inputs = len(job.merge.all_inputs)
        self._step = max(BLOCK // self.row, 1) * self.row if rows else BLOCK
        self._keep = 4 * inputs * self.count <= memory
        self._room = room or Room()
        self._held = self._room.take("held", inputs * (self.count if self._keep else min(self._step, self.count)))
        self._raw = self._room.take("raw", min(self._step, self.count) * 2).view(np.uint8)
        self._passed = False

    @property
    def kept(self) -> bool:
        """Whether the blocks stay in memory between passes; what a pass overwrites is then lost to the next."""
        return self._keep

    def scratch(self, role: str, *shape: int) -> Floats:
        """A work array; the same memory at each call for a role."""
        return self._room.take(role, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[Block]:
        sources = self._merge.all_inputs
        readers = [None if self._passed or i.rows else GridDigest(i.stored.dtype) for i in sources]
        for begin in range(0, self.count, self._step):
            end = min(begin + self._step, self.count)
            rows = self._block(begin, end)
            if not (self._keep and self._passed):
                self._fill(rows, begin, end, readers)
            base = rows[-1] if self._merge.base is not None else None
            yield Block(begin, rows[: self.models], base)
        complete = [
            (source.stored, digest) for source, digest in zip(sources, readers, strict=True) if digest is not None
        ]
        self.digests.update({stored: digest.hexdigest() for stored, digest in complete})
        self._passed = True

    def whole(self) -> tuple[Floats, Floats | None]:
        """All elements of every input: the stack, [n, count], and the base, [count], or ``None``."""
        parts = [(block.stack.copy(), None if block.base is None else block.base.copy()) for block in self]
        bases = [base for _, base in parts if base is not None]
        stack = np.concatenate([stack for stack, _ in parts], 1) if parts else np.empty((self.models, 0), np.float32)
        return stack, np.concatenate(bases) if bases else None

    def base(self, begin: int, end: int) -> Floats:
        """The base's elements of the current block."""
        base: Floats = self._block(begin, end)[-1]
        return base

    def _block(self, begin: int, end: int) -> Floats:
        """The memory of one block, contiguous as kernels need it: [inputs, length]."""
        inputs = len(self._merge.all_inputs)
        first = inputs * begin if self._keep else 0
        return self._held[first : first + inputs * (end - begin)].reshape(inputs, end - begin)

    def _fill(self, held: Floats, begin: int, end: int, readers: Sequence[GridDigest | None]) -> None:
        for row, source, digest in zip(held, self._merge.all_inputs, readers, strict=True):
            self._read(source, row, begin, end, digest)
        if self._deltas and self._merge.base is not None:
            for row in held[: self.models]:
                np.subtract(row, held[-1], out=row)

    def _read(self, source: Input, row: Floats, begin: int, end: int, digest: GridDigest | None) -> None:
        if source.rows is not None:
            width = source.rows.width
            first, last = begin // width, end // width
            source.rows.fill(row.reshape(last - first, width), first, last, self._read_rows)
            bad = kernels.holds_nonfinite(row.view(np.uint8), "F32")
        else:
            bad = self._read_stored(source.stored, row, begin, end, digest)
        if bad and not self._allow_nonfinite:
            raise WeightopsError(nonfinite(source.stored))
        for term in source.updates:
            if isinstance(term.plus, Scattered):
                add_entries(term.plus, term.coefficient, begin, row, source.stored, self._files)
                continue
            row += np.float32(term.coefficient) * self._update(term.plus, begin, end)

    def _read_stored(self, stored: StoredTensor, row: Floats, begin: int, end: int, digest: GridDigest | None) -> bool:
        """Elements of a tensor as fp32; returns whether one of them is NaN or Inf."""
        raw = self._raw[: (end - begin) * dtypes.itemsize(stored.dtype)]
        read_elements(stored, begin, raw, self._files)
        if digest is not None:
            digest.update(raw)
        if stored.dtype != "F64":
            return kernels.widen_into(self._raw, stored.dtype, row)
        row[:] = kernels.widen(raw, stored.dtype)  # the kernel does not support F64
        return kernels.holds_nonfinite(row.view(np.uint8), "F32")

    def _read_rows(self, tensor: StoredTensor, first: int, last: int) -> Floats:
        """Rows first..last of a matrix: [rows, width], fp32."""
        width, size = tensor.shape[-1], dtypes.itemsize(tensor.dtype)
        raw = np.empty((last - first) * width * size, np.uint8)
        read_elements(tensor, first * width, raw, self._files)
        return kernels.widen(raw, tensor.dtype).astype(np.float32).reshape(last - first, width)

    def _update(self, operand: Any, begin: int, end: int) -> Floats:
        out = np.empty(end - begin, np.float32)
        if isinstance(operand, LowRank):
            left, right = factor(operand.left, self._files), factor(operand.right, self._files)
            low_rank(left, right, operand.scale, operand.transposed, begin, out)
        else:
            out[:] = self._read_rows(operand, 0, operand.shape[0]).reshape(-1)[begin:end]
        return out


def memory_needed(shape: tuple[int, ...], inputs: int) -> int:
    """The least memory for a pass, in bytes: one block of every input, widened, and its raw bytes."""
    row = max(shape[-1], 1) if shape else 1
    return min(max(BLOCK, row), dtypes.count(shape)) * (4 * (inputs + 1) + 8)
