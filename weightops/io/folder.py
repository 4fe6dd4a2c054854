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

#: Most digits of a whole number in a JSON file. transformers writes "no limit" as one of 31 digits.
MOST_DIGITS = 100


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder of safetensors, by name. ``model.safetensors`` goes before an index, as in transformers.

    Raises:
        WeightopsError: no weights, a missing shard, a shard outside the folder, or a tensor that is not in the shard
            that the index names; the problems of all shards are raised together.
    """
    if _exists(folder / SINGLE):
        return tensors_of_file(plain_file(folder, SINGLE))
    if _exists(folder / INDEX):
        return _sharded(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return tensors_of_file(plain_file(folder, files[0].name))
    content = f"{len(files)} .safetensors files and no {INDEX}" if files else "no .safetensors weights"
    raise WeightopsError(f"{folder}: {content}; name a model folder with {SINGLE} or {INDEX}")


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, by name."""
    return {tensor.name: tensor for tensor in read_header(file).tensors}


def plain_file(folder: Path, name: str, index: str = INDEX) -> Path:
    """The path of a file that an index names, checked: an index must not make us read outside its folder.

    A link may point to a file inside the folder, or from a hub snapshot to a blob of the same repository.

    Raises:
        WeightopsError: the name contains a path, or the file is missing or is a link that leaves the folder.
    """
    file = folder / name
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise WeightopsError(
            f"{folder / index}: shard {name!r} is not a plain file name; refusing to read outside the folder"
        )
    if not _exists(file):
        raise WeightopsError(f"{file}: missing, but {index} lists it; download the shard again")
    if not inside(file, folder).is_file():
        raise WeightopsError(f"{file}: not a file; download the shard again")
    return file


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one if the file does not exist.

    Raises:
        WeightopsError: the file exists but is not a JSON object within the limits of :func:`parse_json`, or it is a
            link that leaves its folder.
    """
    try:
        return parse_json(read_beside(file.parent, file.name, MOST_TEXT), str(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object from text that we did not write.

    Args:
        where: Name of the file, for messages.

    Raises:
        WeightopsError: not an object, more than :data:`MOST_MARKS` values, a number with more than
            :data:`MOST_DIGITS` digits, or half a surrogate pair, which is not valid text.
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
        return " (half a surrogate pair is not valid text)"
    return f" ({error})" if type(error) is ValueError else ""


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, the limit is {MOST_DIGITS}")
    return int(digits)


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise WeightopsError(
            f"{folder / INDEX}: no weight_map from tensor names to file names; download the index again"
        )
    shards = sorted(set(shard_of.values()))
    headers = attempt_all(partial(_shard, folder, shard) for shard in shards)
    tensors = dict(zip(shards, headers, strict=True))
    missing = [name for name, shard in shard_of.items() if name not in tensors[shard]]
    if missing:
        name = missing[0]
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise WeightopsError(
            f"{folder / INDEX}: {name} is not in {shard_of[name]}, where the index puts it{others}; download both again"
        )
    return {name: tensors[shard][name] for name, shard in shard_of.items()}


def _shard(folder: Path, name: str) -> dict[str, StoredTensor]:
    return tensors_of_file(plain_file(folder, name))
