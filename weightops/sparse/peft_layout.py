"""Sparse deltas as PEFT's adapters: written in the layout of its Super-Tuning, read from that and from SHiRA's.

Super-Tuning (arXiv 2607.09287) holds flat int32 positions and fp32 values of each linear layer, and makes room for
``int(elements * (1 - sparsity))`` entries in every one before it loads them. A delta with fewer entries somewhere is
therefore filled up with zeros at position 0, which change nothing. SHiRA holds rows and columns, [2, k].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import numpy as np

from .. import dtypes
from ..algebra.checkpoint import Checkpoint
from ..algebra.opening import base_of_adapter, not_plain, open_checkpoint
from ..anatomy.groups import group_of
from ..engine import kernels
from ..engine.exact_reads import read_tensor
from ..engine.jobs import BLOCK
from ..engine.tally import tensor_digest
from ..errors import WeightopsError, short
from ..io.adapter import CONFIG, WEIGHTS
from ..io.folder import plain_file, read_json, tensors_of_file
from ..io.gguf import ALIASES
from ..io.replacing import place_problems
from ..io.safetensors import StoredTensor, build_header
from ..io.sparse_delta import DeltaMetadata, SparseDelta, SparseTensor, made_by
from ..io.spool import TensorSpool
from ..io.staging import Staging
from .delta_file import Entries, load_entries, write_delta
from .sparse_merge import differences, not_additive

PREFIX: Final = "base_model.model."
#: By PEFT's type: the names of values and positions after the module's.
_PARTS: Final = {
    "SUPERTUNING": ("supertuning_values", "supertuning_indices"),
    "SHIRA": ("shira_weight", "shira_indices"),
}


def export_peft(delta: SparseDelta, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a sparse delta as a PEFT Super-Tuning adapter.

    Raises:
        WeightopsError: a tensor is no linear layer's weight, the delta's values are no differences, or ``out`` is in
            use or exists.
    """
    if problems := export_problems(delta, Path(out), overwrite=overwrite):
        raise WeightopsError(*problems)
    sparsity = _sparsity(list(delta.tensors.values()))
    config = {
        "peft_type": "SUPERTUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": _hub(delta.about.base),
        "target_modules": sorted(name.removesuffix(".weight") for name in delta.tensors), "sparsity": sparsity,
        "select_top": True, "r": None, "init_weights": True, "save_precomputed_indices": True, "inference_mode": True,
        "modules_to_save": None,
    }  # fmt: skip
    identity = {"recipe": {"kind": "export", "delta": delta.spec}, "layout": "", "inputs": {}}
    with Staging(Path(out), identity, overwrite=overwrite) as staging, TemporaryFile(dir=staging.folder) as stream:
        spool = TensorSpool(stream)
        for name, tensor in sorted(delta.tensors.items()):
            _append(spool, name, load_entries(tensor), _room(tensor, sparsity), replaces=_replaces(delta))
        head, offsets = build_header(spool.tensors)
        descriptor = staging.allocate(WEIGHTS, head, len(head) + spool.size)
        with open(descriptor, "r+b", closefd=False) as file:
            for name, offset in offsets.items():
                file.seek(offset)
                file.writelines(spool.blocks(name, BLOCK))
        staging.write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        staging.commit()
    return staging.out


def export_problems(delta: SparseDelta, out: Path, *, overwrite: bool = False) -> list[str]:
    """What prevents writing a delta as an adapter in a folder."""
    return [*_not_linear(delta), *not_additive([delta]), *place_problems(out, overwrite=overwrite)]


@dataclass(frozen=True)
class _Layer:
    """The entries of one layer in an adapter, and the weight that they are of."""

    where: str
    weight: StoredTensor
    values: StoredTensor
    indices: StoredTensor


@dataclass(frozen=True, eq=False)
class PeftImport:
    """A sparse PEFT adapter to write as a delta; of its files only headers are read until :meth:`save`.

    Attributes:
        base: The model that it is for.
        layers: Where its entries lie.
        made: How it was made, for the file's metadata.
    """

    base: Checkpoint
    layers: tuple[_Layer, ...]
    made: Mapping[str, Any]

    @property
    def most_entries(self) -> int:
        """How many entries the delta has at most: zeros are left out."""
        return sum(layer.values.count for layer in self.layers)

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the delta file; the adapter's values stay as they are.

        Raises:
            WeightopsError: a position is wrong, a file cannot be read, or ``out`` is in use or exists.
        """
        entries = (_entries(layer) for layer in self.layers)
        about = DeltaMetadata("add", self.base.spec, self.made)
        return write_delta(Path(out), entries, about, overwrite=overwrite)


def import_peft(adapter: str | Path, *, base: str | Path | Checkpoint | None = None) -> PeftImport:
    """Plan to write a PEFT Super-Tuning or SHiRA adapter as a sparse delta.

    Args:
        adapter: The adapter's folder.
        base: The model that it is for; by default the one that its configuration names.

    Raises:
        WeightopsError: another kind of adapter, or a tensor that does not fit.
    """
    folder = Path(adapter)
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind not in _PARTS:
        raise WeightopsError(f"{folder}: the adapter's type is {short(repr(kind))}, not {' or '.join(_PARTS)}")
    for key in ("r", "fan_in_fan_out", "modules_to_save"):
        if config.get(key) and not (key == "r" and kind == "SHIRA"):
            raise WeightopsError(f"{folder / CONFIG}: {key} is set, which a sparse delta cannot hold; merge it in PEFT")
    opened = base if isinstance(base, Checkpoint) else open_checkpoint(base or base_of_adapter(folder, str(folder)))
    if problem := not_plain(opened, "a sparse delta"):
        raise WeightopsError(problem)
    stored = tensors_of_file(plain_file(folder, WEIGHTS, CONFIG))
    layers = tuple(_layers(folder / WEIGHTS, stored, _PARTS[kind], opened))
    return PeftImport(opened, layers, made_by({"kind": "import", "adapter": str(folder), "type": kind}))


def _layers(
    file: Path, stored: Mapping[str, StoredTensor], parts: tuple[str, str], base: Checkpoint
) -> Iterator[_Layer]:
    """The layers of an adapter, their headers checked."""
    for module in sorted({name.rpartition(".")[0] for name in stored}):
        values, indices = (stored.get(f"{module}.{part}") for part in parts)
        known = {f"{module}.{part}" for part in parts}
        others = [n for n in stored if n.rpartition(".")[0] == module and n not in known]
        where = f"{file}: {short(module)}"
        if values is None or indices is None or others:
            raise WeightopsError(f"{where}: it needs just {' and '.join(parts)}; save the adapter again in PEFT")
        weight = base.source.tensors.get(f"{module.removeprefix(PREFIX)}.weight")
        if weight is None or len(weight.shape) != 2 or weight.dtype not in dtypes.FLOATS:
            raise WeightopsError(f"{where}: {base.spec} has no matrix of this name; name the adapter's own base")
        shape = (values.count,) if len(indices.shape) == 1 else (2, values.count)
        if values.dtype not in dtypes.FLOATS or indices.dtype not in ("I32", "I64") or indices.shape != shape:
            what = f"{values.dtype} {list(values.shape)} values, {indices.dtype} {list(indices.shape)} positions"
            raise WeightopsError(f"{where}: {what}; there must be one position for each value")
        yield _Layer(where, weight, values, indices)


def _entries(layer: _Layer) -> Entries:
    """The entries of one layer: sorted, entries of 0 left out, and those of one position added as PEFT adds them."""
    weight, values, indices = layer.weight, layer.values, layer.indices
    flat = read_tensor(indices).view(np.int32 if indices.dtype == "I32" else np.int64).astype(np.int64)
    if len(indices.shape) == 2:
        rows, columns = flat.reshape(2, -1)
        outside = (rows < 0) | (rows >= weight.shape[0]) | (columns < 0) | (columns >= weight.shape[1])
        flat = np.where(outside, -1, rows * weight.shape[1] + columns)
    if len(flat) and (flat.min() < 0 or flat.max() >= weight.count):
        raise WeightopsError(f"{layer.where}: a position is outside its {weight.count} elements; the file is damaged")
    numbers = kernels.widen(read_tensor(values), values.dtype).astype(np.float32)
    flat, numbers = flat[numbers != 0], numbers[numbers != 0]
    places, first = np.unique(flat, return_inverse=True)
    total = np.zeros(len(places), np.float32)
    np.add.at(total, first, numbers)
    digest = tensor_digest(weight)
    raw = kernels.narrow(total, values.dtype)
    return Entries(weight.name, weight.shape, weight.dtype, digest, places, raw, values.dtype)


def _append(spool: TensorSpool, name: str, entries: Entries, room: int, *, replaces: bool) -> None:
    """One layer's positions and values, filled up with zeros at position 0."""
    positions, values = np.zeros(room, np.int32), np.zeros(room, np.float32)
    positions[: len(entries.indices)] = entries.indices
    values[: len(entries.indices)] = differences(entries, replaces)
    at = f"{PREFIX}{name.removesuffix('.weight')}"
    spool.append(f"{at}.supertuning_values", "F32", (room,), values)
    spool.append(f"{at}.supertuning_indices", "I32", (room,), positions)


def _sparsity(tensors: list[SparseTensor]) -> float:
    """The largest sparsity at which PEFT makes room for every tensor's entries."""
    sparsity = 1 - max(tensor.entries / tensor.count for tensor in tensors)
    while any(_room(tensor, sparsity) < tensor.entries for tensor in tensors):
        sparsity = math.nextafter(sparsity, -1)  # some steps: the two roundings of 1 - (1 - share)
    return max(sparsity, 0.0)


def _room(tensor: SparseTensor, sparsity: float) -> int:
    """The entries that PEFT makes room for."""
    return int(tensor.count * (1 - sparsity))


def _not_linear(delta: SparseDelta) -> list[str]:
    odd = [n for n, t in sorted(delta.tensors.items()) if not _is_linear(n, t)]
    if not odd:
        return []
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    what = f"{delta.spec}: {short(odd[0])}{more}: PEFT's Super-Tuning changes only the weights of linear layers"
    return [f"{what}; extract without it, for example excluding embed and norm"]


def _is_linear(name: str, tensor: SparseTensor) -> bool:
    fits = len(tensor.shape) == 2 and name.endswith(".weight") and tensor.count < 1 << 31
    return fits and group_of(name) not in ("embedding", "norm")


def _replaces(delta: SparseDelta) -> bool:
    return delta.about.semantics == "replace"


def _hub(base: str | None) -> Any:
    """How PEFT's configuration names the base: an alias by its id on the hub."""
    return ALIASES[base].hub if base in ALIASES else base
