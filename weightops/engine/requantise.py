"""Results in 8 bits with scales, in the layout in which a source stores the tensor.

A tensor that nothing changes is copied, numbers and scales. Of every other the result is rounded from fp32, by one
thread, in the order of its elements: the rows that share their scales are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..io.quantised import QuantisedTensor, matrix_of, stem_of
from ..io.safetensors import StoredTensor
from .blocks import GridDigest
from .fp8 import quantise
from .jobs import BlockScales, Job
from .tally import Record

_CODES: Final = "F8_E4M3"

Write = Callable[[int, npt.NDArray[np.uint8]], None]


def requantised(jobs: Iterable[Job]) -> tuple[tuple[Job, ...], list[str]]:
    """Jobs that write in 8 bits what a source stores so, with a scale for each block; and what prevents that."""
    made = [one for job in jobs for one in _requantised(job)]
    if any(job.scales is not None or job.dtype == _CODES for job in made):
        return tuple(made), []
    return tuple(made), [
        f"{dtypes.FP8_BLOCK}: no source stores weights in FP8 with a scale for each block of rows and columns; "
        "choose another dtype"
    ]


def _requantised(job: Job) -> tuple[Job, ...]:
    quantised = (operand for operand in job.operands if isinstance(operand, QuantisedTensor))
    like = next((tensor for tensor in quantised if tensor.shape == job.shape and tensor.blocked), None)
    if like is None or like.scales is None or not job.written or not job.count:
        return (job,)
    name = stem_of(job.name) + like.scales.name.removeprefix(stem_of(like.name))
    if job.anchor == like and job.unchanged and like.codes.dtype == _CODES:
        return replace(job, dtype=_CODES, anchor=like.codes), _copy(name, like.scales)
    scales = BlockScales(name, like.scales.dtype, like.scales.shape, like.block, like.power_of_two)
    return (replace(job, dtype=_CODES, scales=scales),)


def _copy(name: str, tensor: StoredTensor) -> Job:
    return Job(name, tensor.dtype, tensor.shape, tensor)


def strip_bytes(job: Job) -> int:
    """Bytes of the rows that share their scales, in fp32 and in 8 bits; 0 for a result that is not in 8 bits."""
    if job.scales is None:
        return 0
    rows, columns = matrix_of(job.shape)
    return 5 * min(job.scales.block[0], rows) * columns


class StripWriter:
    """Rounds a tensor to 8 bits and writes it with its scales. The elements arrive in order."""

    def __init__(self, job: Job, scales: BlockScales, write_codes: Write, write_scales: Write) -> None:
        """``write_codes``, ``write_scales``: called with the first element and the bytes."""
        self._scales, self._writes = scales, (write_codes, write_scales)
        self._rows, columns = matrix_of(job.shape)
        self._strip = np.empty((min(scales.block[0], self._rows), columns), np.float32)
        self._row, self._filled, self._scales_written = 0, 0, 0
        self._digests = GridDigest(job.dtype), GridDigest(scales.dtype)

    def write(self, begin: int, data: npt.NDArray[np.uint8]) -> None:
        """Add elements, fp32."""
        values = data.view(np.float32)
        while len(values):
            size = self._height() * self._strip.shape[1]
            taken, values = values[: size - self._filled], values[size - self._filled :]
            self._strip.reshape(-1)[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == size:
                self._flush()

    def record(self) -> Record:
        """Digests of what was written."""
        codes, scales = self._digests
        return {"out": codes.hexdigest(), "scales": scales.hexdigest()}

    def _height(self) -> int:
        """Rows until the scales change: a block of them, or what is left of the matrix."""
        return min(self._scales.block[0], self._rows - self._row % self._rows)

    def _flush(self) -> None:
        height, columns = self._height(), self._strip.shape[1]
        codes, scales = quantise(
            self._strip[:height], self._scales.block[1], self._scales.dtype, power_of_two=self._scales.power_of_two
        )
        places = self._row * columns, self._scales_written
        for write, digest, place, data in zip(self._writes, self._digests, places, (codes, scales), strict=True):
            write(place, data)
            digest.update(data)
        self._scales_written += len(scales) // dtypes.itemsize(self._scales.dtype)
        self._row, self._filled = self._row + height, 0
