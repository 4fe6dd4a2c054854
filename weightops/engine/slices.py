"""Reads the operands of one slice into a buffer and computes its result there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import Message, Remedy, WeightopsError
from ..io.quantised import QuantisedTensor
from ..io.safetensors import StoredTensor
from . import kernels
from .exact_reads import read_elements
from .fp8 import VALUES
from .jobs import Job, JobSlice, LowRank, Measure, Operand, Patch, Scattered, Term, dtype_of
from .low_rank_kernel import low_rank
from .scatter import overwrite, scattered_row

Bytes = npt.NDArray[np.uint8]
Squares = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def rows_of(piece: JobSlice, buffer: Bytes) -> Bytes:
    """The buffer as one row for each operand and a last row for the result: [operands + 1, bytes]."""
    width = piece.blocks * piece.job.block_elements * piece.job.widest
    count = len(piece.job.operands) + 1
    return buffer[: count * width].reshape(count, width)


def compute(piece: JobSlice, rows: Bytes, files: Mapping[Path, int], *, allow_nonfinite: bool) -> tuple[Bytes, Squares]:
    """Read a slice's operands and compute its result.

    Args:
        rows: The buffer, from :func:`rows_of`; the operands' bytes are left in it.
        files: Open descriptors.

    Returns:
        The result's bytes (in ``rows``), and the squared norms that the job measures: [blocks, 2].

    Raises:
        WeightopsError: NaN or Inf, integer tensors that differ, or a file that ended early.
    """
    job = piece.job
    for row, operand in zip(rows, job.operands, strict=False):
        if isinstance(operand, Scattered):
            _read_entries(operand, piece, row, rows, files)
        else:
            _read_operand(operand, piece, row, files)
    size = (piece.end - piece.begin) * dtypes.itemsize(job.dtype)
    squares = np.zeros((piece.blocks, 2))
    flags = np.zeros(len(rows), np.bool_)
    if job.overwritten is not None:
        result = rows[-1][:size]
        _overwritten(piece, job.overwritten, rows, result, files)
        flags[-1] = job.dtype in dtypes.FLOATS and kernels.holds_nonfinite(result, job.dtype)
    elif job.dtype not in dtypes.FLOATS:
        result = rows[0][:size]
        _check_equal(job, rows, size)
        flags[0] = job.dtype in VALUES and not np.isfinite(VALUES[job.dtype])[result].all()
    elif job.copies:
        result = rows[0][:size]
        flags[0] = kernels.holds_nonfinite(result, job.dtype)
        if job.patches:  # the operand's bytes stay as they were read
            rows[-1][:size] = result
            result = rows[-1][:size]
    else:
        result = rows[-1][:size]
        wide = "F64" in (job.dtype, *map(dtype_of, job.operands))
        if job.written:
            (_affine_wide if wide else _affine)(piece, rows, squares, flags)
        if job.measure is not None and (wide or not job.written or _measured_term(job) < 0):
            (_measure_wide if wide else _measure)(piece, job.measure, rows, squares, flags)
    if not allow_nonfinite:
        _refuse_nonfinite(job, flags)
    for patch in job.patches:
        _apply_patch(piece, patch, result, files, allow_nonfinite=allow_nonfinite)
    return result, squares


def _rows_by_role(job: Job, terms: Sequence[Term]) -> tuple[int, list[int], list[int], list[float]]:
    """Row of the anchor, of each term's plus and minus (-1: none), and the coefficients."""
    place = {operand: row for row, operand in enumerate(job.operands)}
    anchor = -1 if job.anchor is None else place[job.anchor]
    plus = [place[term.plus] for term in terms]
    minus = [-1 if term.minus is None else place[term.minus] for term in terms]
    return anchor, plus, minus, [term.coefficient for term in terms]


def _measured_term(job: Job) -> int:
    """The term whose plus - minus and minus are just what the job measures, which saves a second pass; or -1."""
    if job.measure is None or len(job.measure.change) != 1 or len(job.measure.base) != 1:
        return -1
    (change,), (base,) = job.measure.change, job.measure.base
    plain = change.minus is not None and base == Term(1.0, change.minus) and change.coefficient == 1.0
    same = [t for t, term in enumerate(job.terms) if (term.plus, term.minus) == (change.plus, change.minus)]
    return same[0] if plain and same else -1


def _affine(piece: JobSlice, rows: Bytes, squares: Squares, flags: Flags) -> None:
    """Run the kernel block by block, so that sums do not depend on the slice; flag rows with NaN or Inf."""
    job = piece.job
    anchor, plus, minus, coefficients = _rows_by_role(job, job.terms)
    for block, (lo, hi) in enumerate(piece.spans):
        kernels.affine(
            rows, _codes(job), anchor, np.array(plus, np.int64), np.array(minus, np.int64),
            _factors(coefficients), lo, hi, rows[-1], kernels.CODES[job.dtype], _measured_term(job), squares[block],
            flags.view(np.uint8),
        )  # fmt: skip


def _measure(piece: JobSlice, measure: Measure, rows: Bytes, squares: Squares, flags: Flags) -> None:
    """The squared norms of change and base, block by block, so that the sums do not depend on the slice."""
    for column, terms in enumerate((measure.change, measure.base)):
        _, plus, minus, coefficients = _rows_by_role(piece.job, terms)
        for block, (lo, hi) in enumerate(piece.spans):
            squares[block, column] = kernels.squared_norm(
                rows, _codes(piece.job), np.array(plus, np.int64), np.array(minus, np.int64),
                _factors(coefficients), lo, hi, flags.view(np.uint8),
            )  # fmt: skip


def _codes(job: Job) -> npt.NDArray[np.int64]:
    return np.array([kernels.CODES[dtype_of(operand)] for operand in job.operands], np.int64)


def _factors(coefficients: Sequence[float]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # a scale that fp32 cannot represent shows in the result
        return np.array(coefficients, np.float32)


def _affine_wide(piece: JobSlice, rows: Bytes, squares: Squares, flags: Flags) -> None:
    """The same in numpy, in fp64: where an operand or the result is fp64."""
    job, wide = piece.job, _widened(piece, rows, flags)
    anchor, plus, minus, coefficients = _rows_by_role(job, job.terms)
    result = kernels.affine_numpy(wide, anchor, plus, minus, coefficients, job.dtype)
    rows[-1][: len(result)] = result
    flags[-1] = kernels.holds_nonfinite(result, job.dtype)


def _measure_wide(piece: JobSlice, measure: Measure, rows: Bytes, squares: Squares, flags: Flags) -> None:
    wide = _widened(piece, rows, flags)
    for column, terms in enumerate((measure.change, measure.base)):
        _, plus, minus, coefficients = _rows_by_role(piece.job, terms)
        for block, (lo, hi) in enumerate(piece.spans):
            part = [values[lo:hi] for values in wide]
            squares[block, column] = squared_norm_wide(part, plus, minus, coefficients)


@np.errstate(all="ignore")
def squared_norm_wide(
    operands: list[npt.NDArray[np.floating[Any]]], plus: list[int], minus: list[int], coefficients: list[float]
) -> float:
    """The same as :func:`.kernels.squared_norm` on whole arrays, in fp64."""
    total: npt.NDArray[np.float64] = np.zeros(1)
    for p, m, coefficient in zip(plus, minus, coefficients, strict=True):
        difference = operands[p].astype(np.float64)
        if m != -1:
            difference = difference - operands[m].astype(np.float64)
        total = total + coefficient * difference
    return float(np.square(total).sum())


def _widened(piece: JobSlice, rows: Bytes, flags: Flags) -> list[npt.NDArray[np.floating[Any]]]:
    """Every operand of the slice as numbers; flags rows with NaN or Inf."""
    count, names = piece.end - piece.begin, [dtype_of(operand) for operand in piece.job.operands]
    wide = [kernels.widen(row[: count * dtypes.itemsize(n)], n) for row, n in zip(rows, names, strict=False)]
    flags[: len(wide)] |= [not np.isfinite(values).all() for values in wide]
    return wide


def _check_equal(job: Job, rows: Bytes, size: int) -> None:
    """Integer tensors are not averaged: they are copied, and all operands must be equal."""
    for row, operand in zip(rows[1:], job.operands[1:], strict=False):
        if not np.array_equal(row[:size], rows[0][:size]):
            problem = f"{file_of(operand)}: {operand.name} holds integers that differ from the base's"
            raise WeightopsError(Message(problem, Remedy("leave it out with {}", "exclude")))


def _refuse_nonfinite(job: Job, flags: Flags) -> None:
    """Name the first operand with NaN or Inf, or else the result."""
    for operand, bad in zip(job.operands, flags, strict=False):
        if bad:
            raise WeightopsError(nonfinite(operand))
    if flags.any():
        raise WeightopsError(_too_large(job))


def _too_large(job: Job) -> str:
    return Message(
        f"{job.name}: the result does not fit {job.dtype} (NaN or Inf)",
        Remedy("lower the scale"),
        Remedy("choose a wider {}", "dtype"),
        Remedy("accept it with {}", "allow_nonfinite", True),
    )


def nonfinite(operand: Operand) -> Message:
    """The problem line for a source with NaN or Inf."""
    scales = operand.scales if isinstance(operand, QuantisedTensor) else None
    or_scales = f", or {scales.name} which scales it," if scales else ""
    return Message(
        f"{file_of(operand)}: {operand.name}{or_scales} holds NaN or Inf",
        Remedy("repair the source"),
        Remedy("accept it with {}", "allow_nonfinite", True),
    )


def file_of(operand: Operand) -> Path:
    """The file to name in a message."""
    if isinstance(operand, Scattered):
        return operand.indices.file
    return operand.file if isinstance(operand, StoredTensor) else operand.left.file


def _overwritten(piece: JobSlice, entries: Scattered, rows: Bytes, result: Bytes, files: Mapping[Path, int]) -> None:
    """The anchor's bytes, in the job's dtype, with the entries in their places."""
    job, anchor = piece.job, piece.job.anchor
    assert anchor is not None
    raw = rows[0][: (piece.end - piece.begin) * dtypes.itemsize(anchor.dtype)]
    result[:] = raw if anchor.dtype == job.dtype else kernels.narrow(kernels.widen(raw, anchor.dtype), job.dtype)
    overwrite(entries, piece.begin, piece.end - piece.begin, result, job.dtype, files)


def _read_entries(entries: Scattered, piece: JobSlice, row: Bytes, rows: Bytes, files: Mapping[Path, int]) -> None:
    """What a sparse delta adds to a slice, into its row; the row of the tensor that it replaces is already read."""
    if entries == piece.job.overwritten:
        return  # they are put into the result as they are
    size = dtypes.itemsize(dtype_of(entries))
    out = row[: (piece.end - piece.begin) * size].view(np.float32 if size == 4 else np.float64)
    base = rows[piece.job.operands.index(entries.of)] if entries.of in piece.job.operands else None
    scattered_row(entries, piece.begin, out, base, files)


def _read_operand(operand: StoredTensor | LowRank, piece: JobSlice, row: Bytes, files: Mapping[Path, int]) -> None:
    """Read a slice of one operand into its row, with zeros past the operand's end."""
    if isinstance(operand, LowRank):
        left, right = (factor(stored, files) for stored in (operand.left, operand.right))
        out = row.view(np.float32)[: piece.end - piece.begin]
        low_rank(left, right, operand.scale, operand.transposed, piece.begin, out)
        return
    size = dtypes.itemsize(operand.dtype)
    begin, end = min(piece.begin, operand.count), min(piece.end, operand.count)
    row[(end - begin) * size : (piece.end - piece.begin) * size] = 0
    read_elements(operand, begin, row[: (end - begin) * size], files)


def factor(tensor: StoredTensor, files: Mapping[Path, int]) -> npt.NDArray[np.float32]:
    """A complete low-rank factor in fp32."""
    raw = np.empty(tensor.nbytes, np.uint8)
    read_elements(tensor, 0, raw, files)
    return kernels.widen(raw, tensor.dtype).astype(np.float32).reshape(tensor.shape)


def _apply_patch(
    piece: JobSlice, patch: Patch, result: Bytes, files: Mapping[Path, int], *, allow_nonfinite: bool
) -> None:
    lo, hi = max(piece.begin, patch.at), min(piece.end, patch.at + patch.count)
    if lo >= hi:
        return
    source, size = patch.source, dtypes.itemsize(patch.source.dtype)
    raw = np.empty((hi - lo) * size, np.uint8)
    read_elements(source, patch.begin + lo - patch.at, raw, files)
    if not allow_nonfinite and source.dtype in dtypes.FLOATS and kernels.holds_nonfinite(raw, source.dtype):
        raise WeightopsError(nonfinite(source))
    if source.dtype != piece.job.dtype:
        raw = kernels.narrow(kernels.widen(raw, source.dtype), piece.job.dtype)
        if not allow_nonfinite and kernels.holds_nonfinite(raw, piece.job.dtype):
            raise WeightopsError(_too_large(piece.job))
    size = dtypes.itemsize(piece.job.dtype)
    result[(lo - piece.begin) * size : (hi - piece.begin) * size] = raw


def write_all(descriptor: int, data: Bytes, offset: int) -> None:
    """Write an array into a file and start flushing it to the disk, so that a later fsync is short."""
    view, at = memoryview(data.data), offset
    while len(view):
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
    os.posix_fadvise(descriptor, offset, data.nbytes, os.POSIX_FADV_DONTNEED)
