"""Positions in a tensor as a file holds them: flat in C order, sorted, each once. There are two forms.

Packed, which weightops writes: the lower 16 bits of each position (U16), and for each block of 65536 elements how many
positions there are before its end (I32 or I64). That is 2 bytes a position and 4 a block. Plain, for other programs to
write: the positions themselves (I32, or I64 for a tensor of 2^31 elements or more).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from .safetensors import StoredTensor
from .small_files import open_file

Positions = npt.NDArray[np.int64]
#: Reads some elements of a stored tensor: the tensor, the first element, how many. Returns their bytes.
Read = Callable[[StoredTensor, int, int], bytes | npt.NDArray[np.uint8]]

#: Elements of a block of the packed form.
BLOCK: Final = 1 << 16
#: Plain positions in a tensor of at least this many elements need 64 bits.
WIDE: Final = 1 << 31
PACKED: Final = "U16"

_CHUNK = 1 << 20  # positions read at a time


@dataclass(frozen=True)
class StoredPositions:
    """Positions on disk.

    Attributes:
        indices: [k]; U16 if packed, else I32 or I64.
        ends: Of the packed form: how many positions are before the end of each block, [blocks]; else ``None``.
    """

    indices: StoredTensor
    ends: StoredTensor | None = None

    @property
    def file(self) -> Path:
        return self.indices.file

    @property
    def count(self) -> int:
        return self.indices.count

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return (self.indices,) if self.ends is None else (self.indices, self.ends)

    def chunks(self) -> Iterator[Positions]:
        """All positions in order, some at a time.

        Raises:
            WeightopsError: the file ended early.
        """
        ends = self.read_ends()
        with open(open_file(self.file), "rb") as stream:
            read = partial(_read, stream)
            for begin in range(0, self.count, _CHUNK):
                numbers = _numbers(self.indices, begin, min(_CHUNK, self.count - begin), read)
                if ends is not None:
                    numbers += BLOCK * np.searchsorted(ends, np.arange(begin, begin + len(numbers)), "right")
                yield numbers

    def read_ends(self) -> Positions | None:
        """The ends of the blocks, if these are packed positions.

        Raises:
            WeightopsError: the file ended early.
        """
        if self.ends is None:
            return None
        with open(open_file(self.file), "rb") as stream:
            return _numbers(self.ends, 0, self.ends.count, partial(_read, stream))

    def between(self, begin: int, end: int, read: Read) -> tuple[int, Positions]:
        """The positions from ``begin`` to before ``end``, and the number of those before them.

        Raises:
            WeightopsError: the file no longer holds what was checked when it was opened.
        """
        numbers = partial(_numbers, self.indices, read=read)
        if self.ends is None:
            first = _lower_bound(numbers, begin, 0, self.count)
            last = _lower_bound(numbers, end, first, min(self.count, first + end - begin))
            return first, numbers(first, last - first)
        before, block, blocks = max(begin // BLOCK - 1, 0), begin // BLOCK, -(-end // BLOCK)
        ends = _numbers(self.ends, before, blocks - before, read)
        bounds = ends if block else np.concatenate([np.zeros(1, np.int64), ends])
        if ends_fault(bounds, int(bounds[-1])) or not 0 <= bounds[0] <= bounds[-1] <= self.count:
            raise WeightopsError(f"{self.file}: it was changed while it was read; rerun")
        positions = numbers(int(bounds[0]), int(bounds[-1] - bounds[0]))
        positions += BLOCK * np.repeat(np.arange(block, blocks), np.diff(bounds))
        first, last = np.searchsorted(positions, [begin, end])
        return int(bounds[0] + first), positions[first:last]


def ends_fault(ends: Positions, count: int) -> str | None:
    """What is wrong with the ends of blocks that hold ``count`` positions; ``None`` if nothing is.

    >>> ends_fault(np.array([2, 1]), 1)
    'its ends of blocks are out of order'
    """
    steps = np.diff(ends)
    if (steps < 0).any() or (len(ends) and ends[0] < 0):
        return "its ends of blocks are out of order"
    if (steps > BLOCK).any():
        return f"more than {BLOCK} positions end in one block"
    last = int(ends[-1]) if len(ends) else 0
    return None if last == count else f"its blocks end with {last} positions, but it has {count}"


def packed(positions: Positions) -> npt.NDArray[np.uint16]:
    """The lower 16 bits of positions."""
    return (positions & (BLOCK - 1)).astype("<u2")


def counts_of_blocks(positions: Positions, elements: int) -> Positions:
    """How many of the positions are in each block of a tensor, [blocks]."""
    return np.bincount(positions // BLOCK, minlength=block_count(elements))


def block_count(elements: int) -> int:
    """Blocks of a tensor."""
    return -(-elements // BLOCK)


def _read(stream: BinaryIO, tensor: StoredTensor, first: int, count: int) -> bytes:
    size = dtypes.itemsize(tensor.dtype)
    stream.seek(tensor.offset + first * size)
    raw = stream.read(count * size)
    if len(raw) < count * size:
        raise WeightopsError(f"{tensor.file}: ended early; it was changed while it was read, rerun")
    return raw


def _numbers(tensor: StoredTensor, first: int, count: int, read: Read) -> Positions:
    raw = read(tensor, first, count)
    return np.frombuffer(raw, _numpy(tensor)).astype(np.int64)


def _numpy(tensor: StoredTensor) -> np.dtype[np.generic]:
    return np.dtype({PACKED: "<u2", "I32": "<i4", "I64": "<i8"}[tensor.dtype])


def _lower_bound(numbers: Callable[[int, int], Positions], wanted: int, low: int, high: int) -> int:
    """The first of the sorted positions low..high that is at least ``wanted``; reads only those it compares."""
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if numbers(middle, 1)[0] < wanted else (low, middle)
    return low
