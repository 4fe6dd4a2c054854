"""Entries of a sparse delta in a slice of a tensor: found by binary search in the file, never a dense tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from . import kernels
from .exact_reads import read_elements
from .jobs import Scattered

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]


def entries_between(entries: Scattered, begin: int, end: int, files: Mapping[Path, int]) -> tuple[Positions, Bytes]:
    """The entries at flat positions begin..end: their places counted from ``begin``, and the values' bytes.

    Raises:
        WeightopsError: the file no longer holds what was checked when it was opened.
    """
    descriptor, total = files[entries.indices.file], entries.indices.count
    first = _lower_bound(entries.indices, descriptor, begin, 0, total)
    last = _lower_bound(entries.indices, descriptor, end, first, min(total, first + end - begin))
    raw = _span(entries.indices, first, last, files)
    places = raw.view(np.int32 if entries.indices.dtype == "I32" else np.int64).astype(np.int64) - begin
    if len(places) and (places[0] < 0 or places[-1] >= end - begin or (np.diff(places) <= 0).any()):
        raise WeightopsError(f"{entries.indices.file}: it was changed while it was read; rerun")
    return places, _span(entries.values, first, last, files)


def scattered_row(
    entries: Scattered, begin: int, out: npt.NDArray[Any], base: Bytes | None, files: Mapping[Path, int]
) -> None:
    """What the entries add to the elements from ``begin`` on, zeros elsewhere.

    Args:
        out: fp32 or fp64, one for each element; filled.
        base: The same elements of ``entries.of`` as bytes, for entries that replace.
    """
    out[:] = 0
    places, raw = entries_between(entries, begin, begin + len(out), files)
    values = kernels.widen(raw, entries.values.dtype).astype(out.dtype)
    if entries.replaces and entries.of is not None and base is not None:
        values -= kernels.widen(_gathered(base, entries.of.dtype, places), entries.of.dtype).astype(out.dtype)
    out[places] = values


def add_entries(
    entries: Scattered,
    coefficient: float,
    begin: int,
    row: npt.NDArray[np.float32],
    stored: StoredTensor,
    files: Mapping[Path, int],
) -> None:
    """Add the entries to a row in fp32; those that replace the row's own tensor are set, which does not round.

    Args:
        row: Elements of ``stored`` from ``begin`` on, to which other updates may have been added.
    """
    places, raw = entries_between(entries, begin, begin + len(row), files)
    values = kernels.widen(raw, entries.values.dtype).astype(np.float32)
    if entries.replaces and entries.of is not None:
        size = dtypes.itemsize(entries.of.dtype)
        base = np.empty(len(row) * size, np.uint8)
        read_elements(entries.of, begin, base, files)
        before = kernels.widen(_gathered(base, entries.of.dtype, places), entries.of.dtype).astype(np.float32)
        if coefficient == 1.0 and entries.of == stored and np.array_equal(row[places], before):
            row[places] = values
            return
        values = values - before
    row[places] += np.float32(coefficient) * values


def overwrite(
    entries: Scattered, begin: int, elements: int, result: Bytes, dtype: str, files: Mapping[Path, int]
) -> None:
    """Put the entries' values in the place of a result's elements, bit for bit where the dtypes are equal.

    Args:
        result: The bytes of ``elements`` elements of ``dtype``, from ``begin`` on.
    """
    places, raw = entries_between(entries, begin, begin + elements, files)
    if entries.values.dtype != dtype:
        raw = kernels.narrow(kernels.widen(raw, entries.values.dtype), dtype)
    size = dtypes.itemsize(dtype)
    result[: elements * size].reshape(elements, size)[places] = raw.reshape(len(places), size)


def _gathered(row: Bytes, dtype: str, places: Positions) -> Bytes:
    """The bytes of some elements of a row."""
    size = dtypes.itemsize(dtype)
    whole = row[: len(row) // size * size].reshape(-1, size)
    return np.ascontiguousarray(whole[places]).reshape(-1)


def _span(tensor: StoredTensor, first: int, last: int, files: Mapping[Path, int]) -> Bytes:
    size = dtypes.itemsize(tensor.dtype)
    raw = np.empty((last - first) * size, np.uint8)
    read_elements(tensor, first, raw, files)
    return raw


def _lower_bound(indices: StoredTensor, descriptor: int, wanted: int, low: int, high: int) -> int:
    """The first of the sorted positions low..high that is at least ``wanted``; reads only those it compares."""
    size = dtypes.itemsize(indices.dtype)
    while low < high:
        middle = (low + high) // 2
        raw = os.pread(descriptor, size, indices.offset + middle * size)
        if int.from_bytes(raw, "little", signed=True) < wanted:
            low = middle + 1
        else:
            high = middle
    return low
