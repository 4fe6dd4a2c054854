"""The hidden states of the rows of a sample, between one part of a model and the next."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import torch
from torch import Tensor

#: Bytes of hidden states that stay in memory; more go to a temporary file.
DEFAULT_KEPT = 256 << 20


class HiddenStates:
    """One tensor of hidden states for each row, fp32; a context manager.

    They are in memory if they all fit ``kept`` bytes, else in a temporary file without a name, which disappears with
    the process.

    Args:
        lengths: Tokens of each row.
        width: Length of a hidden state.
        kept: Most bytes in memory.
        folder: Where the temporary file is made; by default where the system keeps such files.
    """

    def __init__(
        self, lengths: Sequence[int], width: int, *, kept: int = DEFAULT_KEPT, folder: Path | None = None
    ) -> None:
        self._shapes = [(1, length, width) for length in lengths]
        sizes = [4 * length * width for length in lengths]
        self._begins = [sum(sizes[:row]) for row in range(len(sizes))]
        self._rows: list[Tensor | None] = [None] * len(sizes)
        self._file: IO[bytes] | None = None
        if sum(sizes) > kept:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.clear()
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._shapes)

    def __setitem__(self, row: int, hidden: Tensor) -> None:
        held = hidden.detach().to("cpu", torch.float32)
        if tuple(held.shape) != self._shapes[row]:
            raise ValueError(f"row {row} has hidden states of shape {self._shapes[row]}, not {tuple(held.shape)}")
        if self._file is None:
            self._rows[row] = held
        else:
            self._file.seek(self._begins[row])
            self._file.write(held.contiguous().view(torch.uint8).numpy().tobytes())

    def __getitem__(self, row: int) -> Tensor:
        """The hidden states of a row, [1, tokens, width], fp32, on the CPU."""
        if self._file is None:
            held = self._rows[row]
            assert held is not None, f"row {row} was never set"
            return held
        shape = self._shapes[row]
        self._file.seek(self._begins[row])
        data = bytearray(self._file.read(4 * shape[1] * shape[2]))
        return torch.frombuffer(data, dtype=torch.float32).reshape(shape)
