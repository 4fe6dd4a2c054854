"""A Hugging Face folder as a table of stored tensors. Only headers are read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import WeightopsError, attempt_all
from .safetensors import StoredTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder of safetensors, by name. ``model.safetensors`` goes before an index, as in transformers.

    Raises:
        WeightopsError: no weights, a missing shard, a shard outside the folder, or a tensor that the index puts where
            it is not; all shards' problems together.
    """
    if _exists(folder / SINGLE):
        return tensors_of_file(plain_file(folder, SINGLE))
    if _exists(folder / INDEX):
        return _sharded(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return tensors_of_file(plain_file(folder, files[0].name))
    found = f"{len(files)} .safetensors files and no {INDEX}" if files else "no .safetensors weights"
    raise WeightopsError(f"{folder}: {found}; name a model folder with {SINGLE} or {INDEX}")


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, by name."""
    return {tensor.name: tensor for tensor in read_header(file).tensors}


def plain_file(folder: Path, name: str, index: str = INDEX) -> Path:
    """The file of that name in the folder, if it is one: an index must not lead out of its folder.

    A link is followed inside the folder, and from a hub snapshot into the blobs of the same repository.

    Raises:
        WeightopsError: the name has a path in it, or the file is a link out of the folder, or is missing.
    """
    file = folder / name
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise WeightopsError(
            f"{folder / index}: shard {name!r} is not a plain file name; refusing to read outside the folder"
        )
    if not _exists(file):
        raise WeightopsError(f"{file}: missing, though {index} names it; download the shard again")
    target, home = file.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise WeightopsError(f"{file}: a link out of its folder (to {target}); copy the file in if it belongs there")
    if not target.is_file():
        raise WeightopsError(f"{file}: not a file; download the shard again")
    return file


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file.

    Raises:
        WeightopsError: the file is there and is not a JSON object.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise WeightopsError(f"{file}: not valid JSON; restore or download the file again") from error
    if not isinstance(value, dict):
        raise WeightopsError(f"{file}: not a JSON object; restore or download the file again")
    return value


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    placed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise WeightopsError(
            f"{folder / INDEX}: no weight_map from tensor names to file names; download the index again"
        )
    shards = sorted(set(placed.values()))
    headers = attempt_all(partial(_shard, folder, shard) for shard in shards)
    found = dict(zip(shards, headers, strict=True))
    missing = [name for name, shard in placed.items() if name not in found[shard]]
    if missing:
        name = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise WeightopsError(
            f"{folder / INDEX}: {name} is not in {placed[name]}, where the index puts it{more}; download both again"
        )
    return {name: found[shard][name] for name, shard in placed.items()}


def _shard(folder: Path, name: str) -> dict[str, StoredTensor]:
    return tensors_of_file(plain_file(folder, name))
