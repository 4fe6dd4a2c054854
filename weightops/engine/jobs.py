"""The engine's jobs: one for each output tensor, with the stored bytes that it reads and the computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..anatomy.place import Place
from ..io.safetensors import StoredTensor
from ..io.stored_positions import StoredPositions

#: Elements in a block. Tensors are read, hashed and recorded as done in blocks. Part of the file format of
#: ``weightops.json`` (a content hash is a hash of block hashes), so it never changes with slice size or threads.
BLOCK = 1 << 18


@dataclass(frozen=True)
class LowRank:
    """A LoRA update of one tensor: scale * left @ right (or its transpose), never computed as a whole.

    Attributes:
        left: B, [rows, rank].
        right: A, [rank, columns].
        shape: Shape of the tensor that it changes.
        transposed: The tensor stores the transpose (``fan_in_fan_out``, as GPT-2 does).
    """

    name: str
    left: StoredTensor
    right: StoredTensor
    scale: float
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def count(self) -> int:
        return dtypes.count(self.shape)


@dataclass(frozen=True)
class Scattered:
    """Some entries of one tensor that a sparse delta changes: zeros elsewhere, and never a dense tensor on disk.

    Attributes:
        shape: Of the tensor that it changes.
        positions: Flat, sorted, each once.
        values: One for each position.
        of: The tensor of the base that the entries belong to, if the base is known; its content must be
            ``base_digest``, if that is given, wherever it is read.
        replaces: The values are the new entries, so that the difference to those of ``of`` is added; else they are
            added themselves.
    """

    name: str
    shape: tuple[int, ...]
    positions: StoredPositions
    values: StoredTensor
    of: StoredTensor | None
    base_digest: str | None
    replaces: bool

    @property
    def count(self) -> int:
        return dtypes.count(self.shape)


Operand = StoredTensor | LowRank | Scattered


def dtype_of(operand: Operand) -> str:
    """The dtype of an operand's row. Updates are expanded in fp32, entries in fp64 where they or their base are."""
    if isinstance(operand, StoredTensor):
        return operand.dtype
    if isinstance(operand, LowRank):
        return "F32"
    return "F64" if "F64" in (operand.values.dtype, operand.of and operand.of.dtype) else "F32"


@dataclass(frozen=True)
class Term:
    """coefficient * (plus - minus), or coefficient * plus."""

    coefficient: float
    plus: Operand
    minus: StoredTensor | None = None


@dataclass(frozen=True)
class Patch:
    """A copy of elements: ``count`` elements of ``source`` from ``begin`` on go to the output from ``at`` on."""

    at: int
    source: StoredTensor
    begin: int
    count: int


#: Reads rows first..last of a stored matrix: [rows, width], fp32.
RowReader = Callable[[StoredTensor, int, int], npt.NDArray[np.float32]]


class RowSource(Protocol):
    """A matrix built from rows of other matrices: a vocabulary aligned by token."""

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """Every tensor that it reads."""

    @property
    def width(self) -> int:
        """Elements of a row."""

    def fill(self, out: npt.NDArray[np.float32], first: int, last: int, read: RowReader) -> None:
        """Rows first..last into ``out``, [rows, width]."""


@dataclass(frozen=True)
class Input:
    """The input of a merge from one model: a stored tensor, plus LoRA updates."""

    stored: StoredTensor
    updates: tuple[Term, ...] = ()
    rows: RowSource | None = None


@dataclass(frozen=True)
class Merge:
    """A merge method on aligned tensors.

    Attributes:
        method: Name of the method in the registry.
        inputs: The models, in the order of the recipe.
        base: The base model's tensor, if there is one.
        settings: Keyword arguments of the method.
        place: The tensor's layer in the model.
        seed: Seed of random methods.
        device: The device on which torch runs a method that has no streaming form.
        scale: Factor on the result of a method of task vectors, before the base is added.
        workspace: Least memory of the merge, in bytes, independent of the memory setting.
    """

    method: str
    inputs: tuple[Input, ...]
    base: Input | None
    settings: tuple[tuple[str, Any], ...]
    place: Place
    seed: int = 0
    device: str = "cpu"
    scale: float = 1.0
    workspace: int = 0

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """The models, then the base."""
        return self.inputs if self.base is None else (*self.inputs, self.base)


@dataclass(frozen=True)
class Measure:
    """Two sums of terms whose sizes execution reports: a change, and what it is compared with."""

    change: tuple[Term, ...]
    base: tuple[Term, ...]


@dataclass(frozen=True)
class BlockScales:
    """How a result is written in 8 bits: as numbers, and a tensor with the scale of each block.

    Attributes:
        name: Of the tensor of scales.
        dtype: Of the scales.
        shape: Of the tensor of scales.
        block: Rows and columns that share a scale.
        power_of_two: Scales are powers of two.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    power_of_two: bool


@dataclass(frozen=True)
class Job:
    """One output tensor: anchor + sum of terms, rounded once to ``dtype``; or, with ``merge``, a method's result.

    With no terms and the anchor's own dtype the bytes are copied. A job that is not ``written`` only measures. An
    anchor shorter than the job is followed by zeros, for patches to fill. With ``scales`` it is two output tensors: the
    result in 8 bits, rounded from fp32, and its scales.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    anchor: StoredTensor | None
    terms: tuple[Term, ...] = ()
    patches: tuple[Patch, ...] = ()
    merge: Merge | None = None
    measure: Measure | None = None
    written: bool = True
    scales: BlockScales | None = None

    @property
    def count(self) -> int:
        return dtypes.count(self.shape)

    @property
    def outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of each tensor that it writes."""
        if not self.written:
            return {}
        scales = {} if self.scales is None else {self.scales.name: (self.scales.dtype, self.scales.shape)}
        return {self.name: (self.dtype, self.shape), **scales}

    @property
    def computed(self) -> Job:
        """The job whose result is written: in fp32, if it is then rounded to 8 bits."""
        return self if self.scales is None else replace(self, dtype="F32", scales=None)

    @property
    def copies(self) -> bool:
        """Whether the anchor's bytes are copied without change."""
        return self.anchor is not None and not self.terms and self.anchor.dtype == self.dtype

    @property
    def unchanged(self) -> bool:
        """Whether the output is the anchor, byte for byte, so that both have one digest."""
        return self.copies and not self.patches and self.anchor is not None and self.anchor.shape == self.shape

    @property
    def overwritten(self) -> Scattered | None:
        """The entries that replace the anchor's, where that is all the job does: it is done bit for bit."""
        if len(self.terms) != 1 or self.measure is not None:
            return None
        coefficient, entries = self.terms[0].coefficient, self.terms[0].plus
        if not isinstance(entries, Scattered) or not entries.replaces or entries.of is None:
            return None
        return entries if coefficient == 1.0 and entries.of == self.anchor else None

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """Every operand that the job reads, once each; the tensor whose entries are replaced before the entries."""
        unique: dict[Operand, None] = {}
        for source in self.merge.all_inputs if self.merge else ():
            unique.update(dict.fromkeys(source.rows.sources if source.rows else (source.stored,)))
            for update in source.updates:
                unique.update(dict.fromkeys(_with_base(update.plus)))
        if self.anchor is not None:
            unique[self.anchor] = None
        measured = (*self.measure.change, *self.measure.base) if self.measure else ()
        for term in (*self.terms, *measured):
            unique.update(dict.fromkeys(_with_base(term.plus)))
            if term.minus is not None:
                unique[term.minus] = None
        return tuple(unique)

    @property
    def whole(self) -> bool:
        """Whether one thread computes the tensor as a whole, in passes over its blocks."""
        return self.merge is not None or self.scales is not None

    @property
    def row_bytes(self) -> int:
        """Bytes of buffer that one element needs, operands and result together."""
        return self.widest * (len(self.operands) + 1)

    @property
    def widest(self) -> int:
        """Bytes of the widest element that is read or written."""
        return max(dtypes.itemsize(dtype) for dtype in (self.dtype, *map(dtype_of, self.operands)))

    @property
    def factor_bytes(self) -> int:
        """Bytes of the low-rank factors, which are fully in memory, in fp32."""
        pairs = [(o.left, o.right) for o in self.operands if isinstance(o, LowRank)]
        return sum(4 * (left.count + right.count) for left, right in pairs)

    @property
    def blocks(self) -> int:
        return -(-self.count // BLOCK)

    @property
    def block_elements(self) -> int:
        """Elements of a block in a row of the buffer, rounded up so that even the smallest tensor fills whole words."""
        return min(BLOCK, -(-self.count // 8) * 8)


def _with_base(operand: Operand) -> tuple[Operand, ...]:
    """An operand, after the tensor of the base that it needs."""
    if isinstance(operand, Scattered) and operand.replaces and operand.of is not None:
        return operand.of, operand
    return (operand,)


@dataclass(frozen=True)
class JobSlice:
    """Some consecutive blocks of one job, which a thread reads, computes and writes together.

    Attributes:
        number: The job's index in the plan.
        block: First block.
        blocks: Number of blocks.
    """

    number: int
    job: Job
    block: int
    blocks: int

    @property
    def begin(self) -> int:
        """First element."""
        return self.block * BLOCK

    @property
    def end(self) -> int:
        """One past the last element."""
        return min((self.block + self.blocks) * BLOCK, self.job.count)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and one past the last element of each block, counted from the beginning of the slice."""
        count = self.end - self.begin
        return [(lo, min(lo + BLOCK, count)) for lo in range(0, count, BLOCK)]

    def parts(self, blocks: int) -> Iterator[JobSlice]:
        """The slice in slices of at most so many blocks."""
        for block in range(self.block, self.block + self.blocks, blocks):
            yield replace(self, block=block, blocks=min(blocks, self.block + self.blocks - block))

    @property
    def work(self) -> int:
        """Bytes read and written, as progress counts them."""
        return (self.end - self.begin) * self.job.widest * (len(self.job.operands) + self.job.written)
