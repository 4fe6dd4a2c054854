"""The fused kernel: anchor + sum of coefficient * (plus - minus), rounded once.

Operands are raw bytes, one row each. They are widened tile by tile in the first-level cache, without intermediate
arrays of the size of a slice. The kernel is serial and releases the interpreter lock; the engine's threads call it.
Products and sums are single fp32 operations in the written order (no fused multiply-add), so the result equals the
fp32 formula in torch bit for bit. :func:`affine_numpy` is the reference, and computes fp64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from .. import dtypes
from .numba_start import import_array_functions

Bytes = npt.NDArray[np.uint8]

#: The kernel's codes of dtypes.
CODES: Final = {"F16": 0, "BF16": 1, "F32": 2, "F64": 3}

_TILE = 2048  # three fp32 tiles of this length stay in the first-level cache
_NONE = -1
_EXPONENT = np.uint32(0x7F800000)  # all set: NaN or Inf

F = TypeVar("F", bound=Callable[..., Any])

import_array_functions()


def jit(function: F) -> F:
    return _compiled(function)


def jit_sum(function: F) -> F:
    """Compile with sums in any order: sums of squares are only measurements, printed with a few digits."""
    return _compiled(function, fastmath={"reassoc", "nsz"})


def _compiled(function: F, **options: Any) -> F:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no place for the cache: a read-only installation and no writable home folder
        return cast(F, numba.njit(**options)(function))


@jit
def _nonfinite(bits: Any) -> bool:
    largest = np.uint32(0)
    for j in range(len(bits)):
        largest = max(largest, np.uint32(bits[j] & _EXPONENT))
    return bool(largest == _EXPONENT)


@jit
def _widen(code: int, row: Any, lo: int, bits: Any, values: Any) -> bool:
    """Elements of a row from ``lo`` on as fp32 in ``values``; ``bits`` is the same memory as integers.

    Slices are taken before the loops, and integers are cast after every operation: an index that might be negative, and
    a sum that numba would keep in 64 bits, keep the compiler from vectorising.

    Returns:
        Whether one of them is NaN or Inf.
    """
    n = len(values)
    if code == 2:
        values[:] = row.view(np.float32)[lo : lo + n]
        return _nonfinite(bits)
    halves = row.view(np.uint16)[lo : lo + n]
    if code == 1:
        largest = np.uint32(0)
        for j in range(n):
            bits[j] = np.uint32(np.uint32(halves[j]) << np.uint32(16))
            largest = max(largest, np.uint32(bits[j] & _EXPONENT))
        return bool(largest == _EXPONENT)
    for j in range(n):
        bits[j] = (np.uint32(halves[j]) & np.uint32(0x7FFF)) << np.uint32(13)
    for j in range(n):  # shifts the exponent from bias 15 to 127, subnormals included
        values[j] *= np.float32(2.0**112)
    for j in range(n):
        half = np.uint32(halves[j])
        special = np.uint32(0x7F800000) if half & np.uint32(0x7C00) == np.uint32(0x7C00) else np.uint32(0)
        bits[j] |= ((half & np.uint32(0x8000)) << np.uint32(16)) | special
    return _nonfinite(bits)


@jit
def round_to_bf16(bits: Any, halves: Any) -> None:
    """Round fp32, given as integers, to bf16: nearest, ties to even, NaN stays NaN."""
    for j in range(len(bits)):
        b = np.uint32(bits[j])
        high = np.uint32(b >> np.uint32(16))
        odd = np.uint32(high & np.uint32(1))
        rounded = np.uint32(np.uint32(np.uint32(b + np.uint32(0x7FFF)) + odd) >> np.uint32(16))
        quiet = np.uint32(high | np.uint32(0x40))
        halves[j] = quiet if np.uint32(b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded


@jit
def _narrow(code: int, bits: Any, values: Any, spare: Any, lo: int, row: Any) -> None:
    """Round fp32 to the output's dtype, into a row from ``lo`` on: nearest, ties to even, NaN stays NaN."""
    n = len(values)
    if code == 2:
        row.view(np.float32)[lo : lo + n] = values
        return
    halves = row.view(np.uint16)[lo : lo + n]
    if code == 1:
        round_to_bf16(bits, halves)
        return
    for j in range(n):  # adding 0.5 lets the fp32 adder round a subnormal half
        spare[j] = np.abs(values[j]) + np.float32(0.5)
    small = spare.view(np.uint32)
    for j in range(n):
        magnitude = bits[j] & np.uint32(0x7FFFFFFF)
        odd = (magnitude >> np.uint32(13)) & np.uint32(1)
        half = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        if magnitude < np.uint32(0x38800000):
            half = small[j] - np.uint32(0x3F000000)
        if magnitude >= np.uint32(0x47800000):
            half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
        halves[j] = half | ((bits[j] >> np.uint32(16)) & np.uint32(0x8000))


@jit
def nonfinite_halves(halves: Any, top: int) -> bool:
    """Whether 16-bit floats contain NaN or Inf: every exponent bit (``top``) set."""
    mask = np.uint16(top)
    largest = np.uint16(0)
    for j in range(len(halves)):
        largest = max(largest, np.uint16(halves[j] & mask))
    return bool(largest == mask)


@jit_sum
def _sum_of_squares(values: Any) -> float:
    total = 0.0
    for j in range(len(values)):
        total += np.float64(values[j]) * np.float64(values[j])
    return total


@jit
def _difference(rows: Any, codes: Any, plus: int, minus: int, lo: int, one: Any, two: Any, nonfinite: Any) -> None:
    """Write a tile of row ``plus`` minus row ``minus`` (-1: ``plus`` alone) to ``one``; ``two`` is work memory."""
    one_bits, two_bits = one.view(np.uint32), two.view(np.uint32)
    nonfinite[plus] |= _widen(codes[plus], rows[plus], lo, one_bits, one)
    if minus >= 0:
        nonfinite[minus] |= _widen(codes[minus], rows[minus], lo, two_bits, two)
        for j in range(len(one)):
            one[j] -= two[j]


@jit
def affine(
    rows: Bytes,
    codes: npt.NDArray[np.int64],
    anchor: int,
    plus: npt.NDArray[np.int64],
    minus: npt.NDArray[np.int64],
    coefficients: npt.NDArray[np.float32],
    begin: int,
    end: int,
    out: Bytes,
    out_code: int,
    measured: int,
    squares: npt.NDArray[np.float64],
    nonfinite: npt.NDArray[np.uint8],
) -> None:
    """One block: out = anchor + sum of coefficients[t] * (rows[plus[t]] - rows[minus[t]]).

    Args:
        rows: Operands' bytes, [k, bytes]; a row's dtype is its entry in ``codes``.
        anchor: Row of the anchor; -1: the sum of the terms alone.
        minus: Rows subtracted, -1 where a term has none.
        begin, end: Elements of the rows to compute; the others do not change.
        out_code: Dtype of the result.
        measured: Term whose |plus - minus|^2 and |minus|^2 are added to ``squares``, [2], on the way; -1: none.
        nonfinite: [k + 1]; set to 1 for each row, and in the last place for the result, that holds NaN or Inf.
    """
    accs, ones, twos = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    for lo in range(begin, end, _TILE):
        n = min(_TILE, end - lo)
        acc, one, two = accs[:n], ones[:n], twos[:n]
        acc_bits = acc.view(np.uint32)
        if anchor >= 0:
            nonfinite[anchor] |= _widen(codes[anchor], rows[anchor], lo, acc_bits, acc)
        else:
            acc[:] = np.float32(0)
        for t in range(len(plus)):
            _difference(rows, codes, plus[t], minus[t], lo, one, two, nonfinite)
            if t == measured:
                squares[0] += _sum_of_squares(one)
                squares[1] += _sum_of_squares(two)
            coefficient = coefficients[t]
            for j in range(n):
                acc[j] += one[j] * coefficient
        _narrow(out_code, acc_bits, acc, two, lo, out)
        if out_code == 2:
            nonfinite[-1] |= _nonfinite(acc_bits)
        else:  # a finite fp32 may round to an infinite half
            top = 0x7F80 if out_code == 1 else 0x7C00
            nonfinite[-1] |= nonfinite_halves(out.view(np.uint16)[lo : lo + n], top)


@jit
def squared_norm(
    rows: Bytes,
    codes: npt.NDArray[np.int64],
    plus: npt.NDArray[np.int64],
    minus: npt.NDArray[np.int64],
    coefficients: npt.NDArray[np.float32],
    begin: int,
    end: int,
    nonfinite: npt.NDArray[np.uint8],
) -> float:
    """The squared Euclidean norm of the sum of coefficients[t] * (rows[plus[t]] - rows[minus[t]]), fp64.

    Args:
        rows, codes, minus, begin, end: As for :func:`affine`.
        nonfinite: Set to 1 for each row that holds NaN or Inf.
    """
    total = 0.0
    accs, ones, twos = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    for lo in range(begin, end, _TILE):
        n = min(_TILE, end - lo)
        acc, one, two = accs[:n], ones[:n], twos[:n]
        acc[:] = np.float32(0)
        for t in range(len(plus)):
            _difference(rows, codes, plus[t], minus[t], lo, one, two, nonfinite)
            coefficient = coefficients[t]
            for j in range(n):
                acc[j] += coefficient * one[j]
        total += _sum_of_squares(acc)
    return total


@jit
def _widen_row(code: int, raw: Any, values: Any) -> bool:
    nonfinite = False
    for lo in range(0, len(values), _TILE):
        part = values[lo : lo + _TILE]
        nonfinite |= _widen(code, raw, lo, part.view(np.uint32), part)
    return nonfinite


def widen_into(raw: Bytes, dtype: str, values: npt.NDArray[np.float32]) -> bool:
    """A row's bytes as fp32, into an array of as many elements.

    Args:
        raw: At least the bytes of ``values``' elements, and a multiple of four bytes long.

    Returns:
        Whether one of them is NaN or Inf.
    """
    return bool(_widen_row(CODES[dtype], raw, values))


@jit
def _narrow_row(code: int, values: Any, raw: Any) -> None:
    spare = np.empty(_TILE, np.float32)
    for lo in range(0, len(values), _TILE):
        part = values[lo : lo + _TILE]
        _narrow(code, part.view(np.uint32), part, spare, lo, raw)


def narrow_into(values: npt.NDArray[np.float32], dtype: str, room: npt.NDArray[np.float32]) -> Bytes:
    """fp32 numbers rounded once to a dtype, as bytes.

    Args:
        room: Memory for the bytes, any contents; at least twice as long as ``values``.
    """
    if dtype == "F64":
        return narrow(values, dtype)
    raw = room.view(np.uint8)
    _narrow_row(CODES[dtype], values, raw)
    return raw[: dtypes.itemsize(dtype) * len(values)]


@jit_sum
def _gram(stack: Any, out: Any) -> None:
    for i in range(stack.shape[0]):
        for k in range(i + 1):
            total = 0.0
            for j in range(stack.shape[1]):
                total += np.float64(stack[i, j]) * np.float64(stack[k, j])
            out[i, k] = total
            out[k, i] = total


def gram(stack: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Inner products of the rows, in fp64: [n, m] to [n, n]."""
    out = np.empty((len(stack), len(stack)))
    _gram(stack, out)
    return out


@jit
def _combination(stack: Any, coefficients: Any, out: Any) -> None:
    for lo in range(0, len(out), _TILE):
        mixed = out[lo : lo + _TILE]
        mixed[:] = np.float32(0)
        for i in range(len(coefficients)):
            factor, row = coefficients[i], stack[i, lo : lo + _TILE]
            for j in range(len(mixed)):
                mixed[j] += factor * row[j]


def combination(
    stack: npt.NDArray[np.float32], coefficients: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Sum of coefficient times row, in the order of the rows: [n, m] into out, [m]."""
    _combination(stack, coefficients, out)
    return out


def holds_nonfinite(raw: Bytes, dtype: str) -> bool:
    """Whether a row of floats contains NaN or Inf."""
    if dtype in ("BF16", "F16"):
        return bool(nonfinite_halves(raw.view(np.uint16), 0x7F80 if dtype == "BF16" else 0x7C00))
    if dtype == "F32":
        return bool(_nonfinite(raw.view(np.uint32)))
    return not bool(np.isfinite(widen(raw, dtype)).all())


def widen(raw: Bytes, dtype: str) -> npt.NDArray[np.floating[Any]]:
    """A row's bytes as numbers: fp32, or fp64 for F64 (numpy; the kernel's reference)."""
    if dtype == "BF16":
        return cast(npt.NDArray[np.floating[Any]], (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32))
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return cast(npt.NDArray[np.floating[Any]], raw.view(np.float32 if dtype == "F32" else np.float64))


@np.errstate(all="ignore")  # the caller checks for NaN and Inf
def narrow(values: npt.NDArray[np.floating[Any]], dtype: str) -> Bytes:
    """Numbers rounded once to a dtype, as bytes (numpy; the kernel's reference)."""
    if dtype != "BF16":
        target = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        return np.ascontiguousarray(values.astype(target)).view(np.uint8)
    bits = _round_to_odd(values).view(np.uint32) if values.dtype == np.float64 else values.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    halves: Bytes = np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype(np.uint16).view(np.uint8)
    return halves


def _round_to_odd(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Round fp64 to fp32 so that a second rounding, to fewer bits, gives the same result as a single rounding."""
    single = values.astype(np.float32)
    toward_zero = np.where(
        np.abs(single.astype(np.float64)) > np.abs(values), np.nextafter(single, np.float32(0)), single
    )
    inexact = (toward_zero.astype(np.float64) != values) & np.isfinite(values)
    odd: npt.NDArray[np.uint32] = toward_zero.astype(np.float32).view(np.uint32) | inexact.astype(np.uint32)
    return odd.view(np.float32)


@np.errstate(all="ignore")
def affine_numpy(
    operands: list[npt.NDArray[np.floating[Any]]],
    anchor: int,
    plus: list[int],
    minus: list[int],
    coefficients: list[float],
    dtype: str,
) -> Bytes:
    """The same arithmetic on whole arrays: fp32, or fp64 where an operand is fp64."""
    wide: Any = np.float64 if any(o.dtype == np.float64 for o in operands) else np.float32
    result: npt.NDArray[np.floating[Any]] = (
        np.zeros(len(operands[0]), wide) if anchor == _NONE else operands[anchor].astype(wide)
    )
    for p, m, coefficient in zip(plus, minus, coefficients, strict=True):
        difference = operands[p].astype(wide)
        if m != _NONE:
            difference = difference - operands[m].astype(wide)
        result = result + wide(coefficient) * difference
    return narrow(result, dtype)
