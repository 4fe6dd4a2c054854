"""Reads bytes of an open file into memory that is there already."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import WeightopsError


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
