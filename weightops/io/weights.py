"""An opened checkpoint: its stored tensors by name, and the folder that contains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .safetensors import StoredTensor


@dataclass(frozen=True)
class KeptLayers:
    """The layers of a model on disk that a cut of it keeps.

    Attributes:
        numbers: Their numbers in that model, rising.
        of: Layers of that model.
        notes: What the user should know of the cut.
    """

    numbers: tuple[int, ...]
    of: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The numbers in runs.

        >>> str(KeptLayers((0, 1, 2, 5, 7, 8), 9))
        '0-2,5,7-8'
        """
        starts = [i for i, n in enumerate(self.numbers) if not i or self.numbers[i - 1] != n - 1]
        runs = [self.numbers[a:b] for a, b in zip(starts, [*starts[1:], len(self.numbers)], strict=True)]
        return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@dataclass(frozen=True, eq=False)
class Weights:
    """A checkpoint on disk. Two objects opened from the same files are equal, even if the user named them differently.

    Attributes:
        spec: What the user named: a path, ``org/name``, an alias.
        tensors: Every tensor, by name.
        folder: The folder with configuration and tokenizer; ``None`` for a single file.
        revision: The hub's commit, for a model from the hub.
        config: The content of ``config.json``, without what it says of quantised weights; empty if there is none.
        quantisation: What ``config.json`` says of quantised weights, which are read as plain ones.
        kept: Where layers were cut out, those that are left; names and config are then the cut model's.
    """

    spec: str
    tensors: Mapping[str, StoredTensor]
    folder: Path | None = None
    revision: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    kept: KeptLayers | None = None
    quantisation: Mapping[str, Any] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, each once, in order of name."""
        return tuple(sorted({part.file for tensor in self.tensors.values() for part in tensor.parts}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and (self is other or self._contents == other._contents)

    def __hash__(self) -> int:
        return hash(self._contents[0])

    @cached_property
    def _contents(self) -> tuple[Any, ...]:
        """The folder, and each tensor's dtype, shape, file and offset, with links resolved."""
        real = {file: file.resolve() for file in self.files}
        placed = {name: (t.dtype, t.shape, real[t.file], t.offset) for name, t in self.tensors.items()}
        return frozenset(real.values()), self.folder and self.folder.resolve(), placed

    def __repr__(self) -> str:
        return f"Weights({self.spec!r}, {len(self.tensors)} tensors)"
