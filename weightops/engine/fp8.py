"""Numbers of 8 bits with scales, to bf16 and back. Serial kernels that release the interpreter lock.

To bf16: the number times its scale in fp32, rounded once, as transformers 5.23 dequantises. Back, as it quantises: a
block is multiplied by 448 / its largest magnitude, in fp32, and rounded to the nearest, ties to even. A block too small
for that factor is written as zeros (ours; there it becomes NaN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..io.quantised import QuantisedTensor
from . import kernels
from .kernels import jit, round_to_bf16

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

LARGEST: Final = 448.0
"""The largest number of F8_E4M3."""
_TILE = 2048


def _values(mantissa: int, bias: int, *, infinite: bool) -> Floats:
    """The value of each of the 256 codes of an 8-bit float."""
    magnitudes = np.arange(128)
    exponent, fraction = magnitudes >> mantissa, magnitudes & ((1 << mantissa) - 1)
    normal = (1 + fraction / (1 << mantissa)) * 2.0 ** (exponent - bias)
    values = np.where(exponent > 0, normal, fraction / (1 << mantissa) * 2.0 ** (1 - bias))
    if infinite:
        values[exponent == exponent[-1]] = np.nan
        values[(exponent == exponent[-1]) & (fraction == 0)] = np.inf
    else:
        values[-1] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


#: Source: Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433, table 1.
VALUES: Final[Mapping[str, Floats]] = {
    "F8_E4M3": _values(3, 7, infinite=False),
    "F8_E5M2": _values(2, 15, infinite=True),
}


def scale_values(raw: Bytes, dtype: str) -> Floats:
    """Scales as fp32. One of 8 bits is an exponent of two, which files call F8_E8M0 or U8."""
    if dtypes.BITS[dtype] == 8:
        return np.where(
            raw == 255, np.float32(np.nan), np.ldexp(np.float32(1), np.minimum(raw, 254).astype(np.int32) - 127)
        )
    return kernels.widen(raw, dtype).astype(np.float32)


def scale_index(tensor: QuantisedTensor, element: int) -> int:
    """The flat index of the scale that an element is multiplied with."""
    (rows, columns), (block_rows, block_columns), (grid_rows, grid_columns) = tensor.matrix, tensor.block, tensor.grid
    row, column = divmod(element, columns)
    matrix, row = divmod(row, rows)
    return (matrix * grid_rows + row // block_rows) * grid_columns + column // block_columns


def dequantise_into(codes: Bytes, begin: int, tensor: QuantisedTensor, scales: Floats, first: int, out: Bytes) -> None:
    """Some consecutive elements as bf16.

    Args:
        codes: Of the elements from ``begin`` on. They may lie in the upper half of ``out``.
        scales: Those from flat index ``first`` on.
        out: Two bytes for each element.
    """
    grid = np.array([*tensor.matrix, *tensor.block, *tensor.grid], np.int64)
    _expand(codes, VALUES[tensor.codes.dtype], scales, first, begin, grid, out.view(np.uint16))


@jit
def _expand(codes: Any, table: Any, scales: Any, first: int, begin: int, grid: Any, out: Any) -> None:
    rows, columns, block_rows, block_columns, grid_rows, grid_columns = grid
    tile = np.empty(_TILE, np.float32)
    at, end = begin, begin + len(codes)
    while at < end:
        row, column = at // columns, at % columns
        scale = ((row // rows) * grid_rows + (row % rows) // block_rows) * grid_columns + column // block_columns
        n = min(block_columns - column % block_columns, columns - column, end - at, _TILE)
        values, factor = tile[:n], scales[scale - first]
        part = codes[at - begin : at - begin + n]
        for j in range(n):
            values[j] = table[part[j]] * factor
        round_to_bf16(values.view(np.uint32), out[at - begin :][:n])
        at += n


def quantise(strip: Floats, block_columns: int, dtype: str, *, power_of_two: bool) -> tuple[Bytes, Bytes]:
    """Rows that share their scales as F8_E4M3: the codes, and the scales' bytes in their dtype.

    Args:
        strip: [rows, columns].
        dtype: Of the scales; those of 8 bits are powers of two.
        power_of_two: Round scales up to powers of two (``ue8m0``).
    """
    largest = np.zeros(-(-strip.shape[1] // block_columns), np.float32)
    _largest(strip, block_columns, largest)
    factors, scales = _factors(largest, dtype, power_of_two=power_of_two)
    codes = np.empty(strip.size, np.uint8)
    _encode(strip, block_columns, factors, codes)
    return codes, scales


@np.errstate(all="ignore")
def _factors(largest: Floats, dtype: str, *, power_of_two: bool) -> tuple[Floats, Bytes]:
    """What each block is multiplied with, and the bytes of the scales that undo it."""
    factors = np.float32(LARGEST) * (np.float32(1) / largest)  # in torch's order, which rounds twice
    tiny = ~np.isfinite(factors) & ~np.isnan(largest)
    factors = np.where(tiny, np.float32(1), factors)
    scales = np.float32(1) / factors
    exponents = dtypes.BITS[dtype] == 8
    if power_of_two or exponents:
        scales = np.exp2(np.ceil(np.log2(np.maximum(scales, np.finfo(np.float32).tiny)))).astype(np.float32)
    if exponents:
        raw = np.where(np.isnan(scales), 255, np.log2(scales) + 127).astype(np.uint8)
    else:
        raw = kernels.narrow(scales, dtype)
    if dtype != "F32" or power_of_two:
        factors = np.float32(1) / scale_values(raw, dtype)
    return np.where(tiny, np.float32(0), factors), raw


@jit
def _largest(strip: Any, block_columns: int, out: Any) -> None:
    for i in range(strip.shape[0]):
        for k in range(len(out)):
            part = strip[i, k * block_columns : (k + 1) * block_columns]
            largest = out[k]
            for j in range(len(part)):
                size = np.abs(part[j])
                largest = size if size > largest or size != size else largest  # NaN stays
            out[k] = largest


@jit
def _encode(strip: Any, block_columns: int, factors: Any, out: Any) -> None:
    columns = strip.shape[1]
    tile, spare = np.empty(_TILE, np.float32), np.empty(_TILE, np.float32)
    for i in range(strip.shape[0]):
        for k in range(len(factors)):
            for lo in range(k * block_columns, min((k + 1) * block_columns, columns), _TILE):
                n = min(_TILE, (k + 1) * block_columns - lo, columns - lo)
                part, values, small = strip[i, lo : lo + n], tile[:n], spare[:n]
                codes, factor = out[i * columns + lo : i * columns + lo + n], factors[k]
                for j in range(n):
                    values[j] = part[j] * factor
                for j in range(n):  # below 2^-6 codes are multiples of 2^-9: the fp32 adder rounds to them
                    small[j] = min(np.abs(values[j]), np.float32(1)) + np.float32(16384)
                bits, tail = values.view(np.uint32), small.view(np.uint32)
                for j in range(n):
                    size = min(bits[j] & np.uint32(0x7FFFFFFF), np.uint32(0x43E00000))  # 448
                    odd = (size >> np.uint32(20)) & np.uint32(1)
                    code = np.uint32(size - np.uint32(0x3C000000) + np.uint32(0x7FFFF) + odd) >> np.uint32(20)
                    if size < np.uint32(0x3C800000):  # 2^-6
                        code = tail[j] - np.uint32(0x46800000)
                    if bits[j] & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
                        code = np.uint32(0x7F)
                    codes[j] = code | ((bits[j] >> np.uint32(24)) & np.uint32(0x80))
