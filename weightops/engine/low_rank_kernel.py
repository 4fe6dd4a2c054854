"""The product of two factors, any stretch of it, without the whole."""

from __future__ import annotations

from typing import Any

from .kernels import jit


@jit
def low_rank(left: Any, right: Any, scale: float, transposed: bool, lo: int, out: Any) -> None:
    """Elements lo.. (flat) of scale * left @ right, or of its transpose, in fp32.

    The sum over the rank runs in order for every element, so that the result does not depend on the slice.

    Args:
        left: [rows, rank], fp32. right: [rank, columns], fp32.
        out: [count], fp32; filled.
    """
    lines = left.T.copy() if transposed else right.copy()
    factors = right.T.copy() if transposed else left.copy()
    width = lines.shape[1]
    j = 0
    while j < len(out):
        row, column = (lo + j) // width, (lo + j) % width
        n = min(width - column, len(out) - j)
        part = out[j : j + n]
        _add_lines(lines, factors[row], column, part)
        for i in range(n):
            part[i] *= scale
        j += n


@jit
def _add_lines(lines: Any, factors: Any, column: int, part: Any) -> None:
    """part = factors @ lines[:, column:]; four lines a pass, so that ``part`` is read and written less often."""
    rank, n = len(factors), len(part)
    whole = rank - rank % 4
    part[:] = 0.0
    for r in range(0, whole, 4):
        a, b, c, d = factors[r], factors[r + 1], factors[r + 2], factors[r + 3]
        one, two = lines[r, column : column + n], lines[r + 1, column : column + n]
        three, four = lines[r + 2, column : column + n], lines[r + 3, column : column + n]
        for i in range(n):
            part[i] = (((part[i] + a * one[i]) + b * two[i]) + c * three[i]) + d * four[i]
    for r in range(whole, rank):
        factor, line = factors[r], lines[r, column : column + n]
        for i in range(n):
            part[i] += factor * line[i]
