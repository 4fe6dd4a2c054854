"""A Hugging Face folder as a table of stored tensors. Only headers are read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import WeightopsError, attempt_all
from .safetensors import StoredTensor, read_header, refuse_crowded
from .small_files import MOST_TEXT, inside, read_beside

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

#: Digits of a whole number in a JSON file. transformers writes "no limit" as one of 31 digits.
MOST_DIGITS = 100


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
    if not inside(file, folder).is_file():
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
        WeightopsError: the file is there and is not a JSON object within the bounds of :func:`parse_json`, or it is a
            link out of its folder.
    """
    try:
        return parse_json(read_beside(file.parent, file.name, MOST_TEXT), str(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object in text that a stranger wrote.

    Args:
        where: Name of the file, for messages.

    Raises:
        WeightopsError: not an object, more than :data:`MOST_MARKS` values, a number of more than
            :data:`MOST_DIGITS` digits, or half a surrogate pair, which is no text.
    """
    try:
        refuse_crowded(raw)
        value = json.loads(raw.decode("utf-8"), parse_int=_whole)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WeightopsError(f"{where}: not valid JSON{_reason(error)}; restore or download the file again") from error
    if not isinstance(value, dict):
        raise WeightopsError(f"{where}: not a JSON object; restore or download the file again")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return " (half a surrogate pair is no text)"
    return f" ({error})" if type(error) is ValueError else ""


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, at most {MOST_DIGITS} are read")
    return int(digits)


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
