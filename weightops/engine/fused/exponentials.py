"""exp and tanh of fp64 numbers as polynomials in plain loops, which the compiler vectorises: three times libm's speed.

Both are within about two ulps. Once rounded to fp32, they nearly always equal those of any library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import jit

_LOG2_E = 1.4426950408889634
_LN_2, _LN_2_REST = 0.693147180369123816490, 1.90821492927058770002e-10  # the first ends in zeros: k times it is exact
_EXPONENT = 2.0**52 + 1023  # added to k, it leaves k + 1023 in the last bits, the exponent of 2^k
_SMALL = 1 / 16  # up to here the series of tanh has all bits


@jit
def exponentials(x: Any, powers: Any) -> None:
    """exp in place: 2^k times the Taylor series of what is left. ``powers`` is work memory of the same length.

    Args:
        x: [m], below 700; below -700 the result is that of -700.
    """
    bits = powers.view(np.int64)
    for j in range(len(x)):
        number = -700.0 if x[j] < -700.0 else x[j]
        k = np.floor(number * _LOG2_E + 0.5)
        powers[j] = k + _EXPONENT
        y = (number - k * _LN_2) - k * _LN_2_REST
        series = y * (1 / 479001600) + 1 / 39916800
        series = series * y + 1 / 3628800
        series = series * y + 1 / 362880
        series = series * y + 1 / 40320
        series = series * y + 1 / 5040
        series = series * y + 1 / 720
        series = series * y + 1 / 120
        series = series * y + 1 / 24
        series = series * y + 1 / 6
        series = series * y + 1 / 2
        x[j] = (series * y + 1) * y + 1
    for j in range(len(x)):
        bits[j] <<= 52
    for j in range(len(x)):
        x[j] *= powers[j]


@jit
def tanhs(x: Any) -> None:
    """tanh in place: its series if all numbers are small, as products of task vectors are, else libm's."""
    large = 0
    for j in range(len(x)):
        large += np.abs(x[j]) > _SMALL
    if large:
        for j in range(len(x)):
            x[j] = np.tanh(x[j])
        return
    for j in range(len(x)):
        z = x[j] * x[j]
        series = (z * (-1382 / 155925) + 62 / 2835) * z - 17 / 315
        x[j] += x[j] * z * ((series * z + 2 / 15) * z - 1 / 3)
