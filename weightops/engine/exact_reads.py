"""Reads elements of stored tensors into memory that is there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from ..io.quantised import QuantisedTensor
from ..io.safetensors import StoredTensor
from ..io.small_files import open_file
from . import kernels
from .fp8 import VALUES, dequantise_into, scale_index, scale_values

Bytes = npt.NDArray[np.uint8]


def read_exactly(descriptor: int, into: Bytes, offset: int, file: Path) -> None:
    """Fill an array from a file.

    Raises:
        WeightopsError: the file is too short.
    """
    view = memoryview(into.data)
    while len(view):
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise WeightopsError(f"{file}: ended early; it was changed while it was read, rerun")
        view, offset = view[got:], offset + got


def read_elements(tensor: StoredTensor, begin: int, into: Bytes, files: Mapping[Path, int]) -> None:
    """Fill an array with elements of a tensor, from ``begin`` on; quantised ones as the weights that they stand for.

    Args:
        into: The bytes of whole elements, in the tensor's dtype.
        files: Open descriptors.

    Raises:
        WeightopsError: a file is too short.
    """
    if isinstance(tensor, QuantisedTensor):
        _read_quantised(tensor, begin, into, files)
    else:
        read_exactly(files[tensor.file], into, tensor.offset + begin * dtypes.BITS[tensor.dtype] // 8, tensor.file)


def _read_quantised(tensor: QuantisedTensor, begin: int, into: Bytes, files: Mapping[Path, int]) -> None:
    """Read the codes into the upper half of the array, and expand them from its beginning on, piece by piece."""
    count = len(into) // dtypes.itemsize(tensor.dtype)
    codes = into[len(into) - count :]
    read_exactly(files[tensor.codes.file], codes, tensor.codes.offset + begin, tensor.codes.file)
    if tensor.scales is None:
        into[:] = kernels.narrow(VALUES[tensor.codes.dtype][codes], tensor.dtype)
        return
    size, stored = dtypes.itemsize(tensor.scales.dtype), tensor.scales
    for lo, hi in _pieces(begin, begin + count, tensor.matrix[1]):
        first, last = scale_index(tensor, lo), scale_index(tensor, hi - 1)
        raw = np.empty((last + 1 - first) * size, np.uint8)
        read_exactly(files[stored.file], raw, stored.offset + first * size, stored.file)
        out = into[(lo - begin) * 2 : (hi - begin) * 2]
        dequantise_into(codes[lo - begin : hi - begin], lo, tensor, scale_values(raw, stored.dtype), first, out)


def _pieces(begin: int, end: int, columns: int) -> Iterator[tuple[int, int]]:
    """Elements as the rest of a row, whole rows, and the start of a row: the scales of each lie next to each other."""
    first = min(-(-begin // columns) * columns, end)
    last = max(end // columns * columns, first)
    yield from ((lo, hi) for lo, hi in ((begin, first), (first, last), (last, end)) if lo < hi)


def read_tensor(tensor: StoredTensor, begin: int = 0, count: int | None = None) -> Bytes:
    """The bytes of some elements of a stored tensor, or of all.

    Raises:
        WeightopsError: a file is too short.
    """
    elements = tensor.count - begin if count is None else count
    raw = np.empty(elements * dtypes.BITS[tensor.dtype] // 8, np.uint8)
    with opened_files(tensor) as files:
        read_elements(tensor, begin, raw, files)
    return raw


def blocks_of(tensor: StoredTensor, size: int) -> Iterator[Bytes]:
    """The bytes of a tensor, ``size`` elements at a time.

    Raises:
        WeightopsError: a file is too short.
    """
    with opened_files(tensor) as files:
        for begin in range(0, tensor.count, size):
            raw = np.empty(min(size, tensor.count - begin) * dtypes.BITS[tensor.dtype] // 8, np.uint8)
            read_elements(tensor, begin, raw, files)
            yield raw


@contextmanager
def opened_files(tensor: StoredTensor) -> Iterator[Mapping[Path, int]]:
    """The files of one tensor."""
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for path in {part.file for part in tensor.parts}:
            files[path] = open_file(path)
            stack.callback(os.close, files[path])
        yield files
