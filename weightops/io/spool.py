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
        self._stream, self._pieces = stream, dict[str, list[tuple[int, int]]]()

    def append(self, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        """Add a tensor, given as bytes or an array, or more rows of one that is there already."""
        rows = self.tensors[name][1][0] if name in self.tensors else 0
        self._pieces.setdefault(name, []).append((self._stream.tell(), dtypes.nbytes(dtype, shape)))
        self.tensors[name] = dtype, (shape[0] + rows, *shape[1:]) if rows else shape
        self._stream.write(data)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(dtypes.nbytes(*entry) for entry in self.tensors.values())

    def blocks(self, name: str, elements: int) -> Iterator[bytes]:
        """A tensor's bytes, at most ``elements`` at a time; a tensor that came at once in pieces of just that size."""
        step = elements * dtypes.itemsize(self.tensors[name][0])
        for begin, size in self._pieces[name]:
            self._stream.seek(begin)
            for done in range(0, size, step):
                yield self._stream.read(min(step, size - done))
