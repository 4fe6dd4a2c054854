"""Reads bytes of an open file into memory that is there already."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from ..io.small_files import open_file


def read_exactly(descriptor: int, into: npt.NDArray[np.uint8], offset: int, file: Path) -> None:
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


def read_tensor(tensor: StoredTensor, begin: int = 0, count: int | None = None) -> npt.NDArray[np.uint8]:
    """The bytes of some elements of a stored tensor, or of all.

    Raises:
        WeightopsError: the file is too short.
    """
    size = dtypes.itemsize(tensor.dtype)
    raw = np.empty((tensor.count - begin if count is None else count) * size, np.uint8)
    descriptor = open_file(tensor.file)
    try:
        read_exactly(descriptor, raw, tensor.offset + begin * size, tensor.file)
    finally:
        os.close(descriptor)
    return raw
