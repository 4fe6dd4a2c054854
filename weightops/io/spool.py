"""Tensors that wait in a file without a name: a safetensors header comes first, so every size must be known before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from .. import dtypes


class TensorSpool:
    """Tensors in the order in which they arrive, to be read again in any order.

    Attributes:
        tensors: dtype and shape by name, as :func:`.safetensors.build_header` takes them.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        """``stream``: an empty file, open for reading and writing."""
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._stream, self._begins = stream, dict[str, int]()

    def append(self, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        """Add a tensor, given as bytes or an array."""
        self._begins[name] = self._stream.tell()
        self.tensors[name] = dtype, shape
        self._stream.write(data)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(dtypes.nbytes(*entry) for entry in self.tensors.values())

    def blocks(self, name: str, elements: int) -> Iterator[bytes]:
        """A tensor's bytes, ``elements`` at a time."""
        dtype, shape = self.tensors[name]
        self._stream.seek(self._begins[name])
        left, step = dtypes.nbytes(dtype, shape), elements * dtypes.itemsize(dtype)
        while left:
            data = self._stream.read(min(step, left))
            left -= len(data)
            yield data
