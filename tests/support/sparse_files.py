"""Sparse deltas on tiny models: drawn entries, and files written by safetensors alone, sound or damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from weightops.io.folder import stored_tensors
from weightops.io.sparse_delta import KEY, DeltaMetadata, Semantics
from weightops.sparse.delta_file import entries_of, write_delta

DIGEST = "0" * 64


def raw_delta(
    file: Path, parts: dict[str, torch.Tensor], shape: list[int], *, entry: dict[str, Any] | None = None, **about: Any
) -> Path:
    """A file as another program would write it: one tensor ``w`` with these parts, keys of the metadata changed."""
    described = {"shape": shape, "dtype": "BF16", "base": DIGEST, **(entry or {})}
    head = {"version": 1, "semantics": "add", "base": "base", "tensors": {"w": described}, "made": {}, **about}
    save_file(parts, file, metadata={KEY: json.dumps(head)})
    return file


def drawn(shape: tuple[int, ...], share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random positions of a tensor, sorted, and as many values, fp32."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.tensor(shape).prod())
    positions = torch.randperm(count, generator=draw)[: max(1, round(share * count))].sort().values
    return positions, 0.1 * torch.randn(len(positions), generator=draw)


def delta_of(
    out: Path,
    model: Path,
    changed: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    semantics: Semantics = "add",
    **about: Any,
) -> Path:
    """A delta file of positions and values by name, as a trainer writes it."""
    stored = stored_tensors(model)
    originals = {name: flat(load_file(stored[name].file)[name])[where] for name, (where, _) in changed.items()}
    entries = [entries_of(stored[name], where, what, originals[name]) for name, (where, what) in changed.items()]
    return write_delta(out, entries, DeltaMetadata(semantics, **about))


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in C order."""
    return tensor.reshape(-1)
