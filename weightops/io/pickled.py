"""``.bin`` and ``.pt`` weights: read without running their code, converted once to safetensors in the user's cache."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError
from .cache import cached, entry_name, stamp
from .companions import companions
from .folder import INDEX, SINGLE, plain_file, read_json
from .progress import Progress
from .safetensors import build_header

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2
"""Raised when the conversion changes, so that no old entry is taken for a new one."""

PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


def is_pickled(path: Path) -> bool:
    """Whether it is a ``.bin``, ``.pt`` or ``.pth`` file, or a folder of ``pytorch_model.bin`` without safetensors."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(
            (path / name).exists() for name in (PICKLED_SINGLE, PICKLED_INDEX)
        )
    return path.suffix in (".bin", ".pt", ".pth")


def converted(path: Path, *, untied: bool = False) -> Path:
    """Pickled weights as safetensors, every dtype kept.

    They are converted on first use and then found again by the files' paths, sizes and times of change. A name that
    only repeats another's data (tied weights) is written once, under the first name in the file, unless the model does
    not tie its weights; of a bare file, which has no config that could say so, every name is written.

    Args:
        path: A model folder, or a bare ``.bin``, ``.pt`` or ``.pth`` file.
        untied: Whether the folder's config says that head and embedding are two.

    Returns:
        A complete Hugging Face folder for a folder; a ``.safetensors`` file for a file.

    Raises:
        WeightopsError: a shard is missing or outside the folder, a file is damaged, or it holds objects that would
            have to be unpickled, which can run any code.
    """
    if not path.is_dir():
        if not path.is_file():
            raise WeightopsError(f"{path}: no such file; name a .bin or .pt file, or a model folder")
        name = entry_name(path.stem, stamp([path], VERSION))
        return cached("pickled", name, lambda to: _convert_file(path, to), sources=[path]) / SINGLE
    shards, beside = _shards(path), companions(path)
    name = entry_name(path.name, stamp([*shards, *beside], VERSION))
    convert = partial(_convert_folder, path, shards, beside, untied=untied)
    return cached("pickled", name, convert, sources=[*shards, *beside])


def _convert_file(file: Path, to: Path) -> None:
    _write(_read(file), to / SINGLE)


def pickled_files(path: Path) -> list[Path]:
    """The files with the tensors of a folder, or the bare file itself; none is opened."""
    return _shards(path) if path.is_dir() else [path]


def _shards(folder: Path) -> list[Path]:
    if (folder / PICKLED_SINGLE).exists():
        return [plain_file(folder, PICKLED_SINGLE)]
    placed = read_json(folder / PICKLED_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise WeightopsError(f"{folder / PICKLED_INDEX}: no weight_map from tensors to files; download the index again")
    return [plain_file(folder, shard, PICKLED_INDEX) for shard in sorted(set(placed.values()))]


def _convert_folder(folder: Path, shards: list[Path], beside: list[Path], to: Path, *, untied: bool) -> None:
    for file in beside:
        copy = to / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    names = [SINGLE] if len(shards) == 1 else _numbered(len(shards))
    placed: dict[str, str] = {}
    bytes_written = 0
    with Progress(len(shards), f"converting {folder.name}", unit="file") as bar:
        for shard, name in zip(shards, names, strict=True):
            tensors = _read(shard)
            if twice := sorted(placed.keys() & tensors.keys()):
                raise WeightopsError(f"{shard}: {twice[0]} is in another shard too; download the model again")
            tensors = tensors if untied else _without_repeats(tensors)
            bytes_written += _write(tensors, to / name)
            placed |= dict.fromkeys(tensors, name)
            bar.update()
    if len(shards) > 1:
        index = {"metadata": {"total_size": bytes_written}, "weight_map": placed}
        (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _numbered(count: int) -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _read(file: Path) -> dict[str, Tensor]:
    """A file's tensors by name, mapped into memory where the file's format allows it."""
    import torch

    try:
        state = _load(file)
    except pickle.UnpicklingError as error:
        raise WeightopsError(
            f"{file}: holds Python objects besides tensors, and unpickling them can run any code; where you trust the "
            "file, load it with the program that wrote it and save the tensors as .safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightopsError(
            f"{file}: not a readable PyTorch file (damaged or cut short); download it again"
        ) from error
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(state, Mapping) or not state:
        raise WeightopsError(f"{file}: not a table of tensors by name; save model.state_dict()")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise WeightopsError(f"{file}: {name!r} is not a dense tensor; save model.state_dict() alone")
        if value.dtype not in _dtypes():
            raise WeightopsError(f"{file}: {name}: {value.dtype} has no safetensors form; save it as a plain dtype")
    return {name: value.detach() for name, value in state.items()}


def _load(file: Path) -> Any:
    import torch

    # Files from before torch 1.6 are not archives and cannot be mapped; weights_only holds either way.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_archive(file))


def _is_archive(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _without_repeats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first of each group of names with the very same memory, shape and strides."""
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        first.setdefault(key, name)
    return {name: tensors[name] for name in first.values()}


def _write(tensors: Mapping[str, Tensor], file: Path) -> int:
    """Write one safetensors file, holding one tensor in memory at a time; the bytes of tensor data written."""
    import torch

    short = _dtypes()
    head, offsets = build_header({name: (short[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()})
    with file.open("wb") as stream:
        stream.write(head)
        for name in sorted(tensors, key=lambda name: (offsets[name], tensors[name].numel())):
            stream.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return file.stat().st_size - len(head)


def _dtypes() -> dict[Any, str]:
    import torch

    return {
        torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
        torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
