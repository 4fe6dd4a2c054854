"""``.bin`` and ``.pt`` weights: converted once to safetensors in the user's cache, without running code in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from .. import dtypes
from ..errors import WeightopsError, short
from .cache import cached, entry_name, stamp
from .companions import companions
from .folder import INDEX, SINGLE, plain_file, read_json
from .pickle_reader import PickledTensor, read_table
from .progress import Progress
from .safetensors import build_header
from .small_files import open_file, read_beside

VERSION = 2
"""Increased when the conversion changes, so that entries of an older version are not used."""

PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

MOST_GROWTH: Final = 16
"""Most bytes of tensors per byte of file: names that share data are written out separately."""
_PIECE = 1 << 20
_DTYPES: Final = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def is_pickled(path: Path) -> bool:
    """Whether a path is a ``.bin``, ``.pt`` or ``.pth`` file, or a folder with such weights and no safetensors."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(
            (path / name).exists() for name in (PICKLED_SINGLE, PICKLED_INDEX)
        )
    return path.suffix in (".bin", ".pt", ".pth")


def converted(path: Path, *, untied: bool = False) -> Path:
    """Pickled weights as safetensors, every dtype kept.

    The weights are converted on first use. Later uses find the result by the files' paths, sizes and modification
    times. In a folder, several names for the same data (tied weights) are written once, under the first name in the
    file, unless the config says that the model does not tie its weights. A single file has no config, so every name in
    it is written.

    Args:
        path: A model folder, or a single ``.bin``, ``.pt`` or ``.pth`` file.
        untied: Whether the folder's config says that head and embedding are separate tensors.

    Returns:
        A complete Hugging Face folder for a folder; a ``.safetensors`` file for a file.

    Raises:
        WeightopsError: a shard is missing or outside the folder, a file is damaged, or it contains objects that would
            have to be unpickled, which can run arbitrary code.
    """
    if not path.is_dir():
        if not path.is_file():
            raise WeightopsError(f"{path}: no such file; name a .bin or .pt file, or a model folder")
        name = entry_name(path.stem, stamp([path], VERSION))
        return cached("pickled", name, lambda to: _convert_file(path, to), sources=[path]) / SINGLE
    shards, small_files = _shards(path), companions(path)
    name = entry_name(path.name, stamp([*shards, *small_files], VERSION))
    convert = partial(_convert_folder, path, shards, small_files, untied=untied)
    return cached("pickled", name, convert, sources=[*shards, *small_files])


def _convert_file(file: Path, to: Path) -> None:
    _write(_read(file), to / SINGLE)


def pickled_files(path: Path) -> list[Path]:
    """The files with the tensors of a folder, or the bare file itself; none is opened."""
    return _shards(path) if path.is_dir() else [path]


def _shards(folder: Path) -> list[Path]:
    if (folder / PICKLED_SINGLE).exists():
        return [plain_file(folder, PICKLED_SINGLE)]
    shard_of = read_json(folder / PICKLED_INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise WeightopsError(f"{folder / PICKLED_INDEX}: no weight_map from tensors to files; download the index again")
    return [plain_file(folder, shard, PICKLED_INDEX) for shard in sorted(set(shard_of.values()))]


def _convert_folder(folder: Path, shards: list[Path], small_files: list[Path], to: Path, *, untied: bool) -> None:
    for file in small_files:
        name = file.relative_to(folder).as_posix()
        copy = to / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(read_beside(folder, name))
    names = [SINGLE] if len(shards) == 1 else _numbered(len(shards))
    file_of: dict[str, str] = {}
    bytes_written = 0
    with Progress(len(shards), f"converting {folder.name}", unit="file") as bar:
        for shard, name in zip(shards, names, strict=True):
            tensors = _read(shard)
            if repeated := sorted(file_of.keys() & tensors.keys()):
                raise WeightopsError(
                    f"{shard}: tensor {repeated[0]} is also in another shard; download the model again"
                )
            tensors = tensors if untied else _without_repeats(tensors)
            bytes_written += _write(tensors, to / name)
            file_of |= dict.fromkeys(tensors, name)
            bar.update()
    if len(shards) > 1:
        index = {"metadata": {"total_size": bytes_written}, "weight_map": file_of}
        (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _numbered(count: int) -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _read(file: Path) -> dict[str, _Source]:
    """The tensors of a file, by name, with their offsets."""
    state, begins = read_table(file)
    if not isinstance(state, dict) or not state:
        raise WeightopsError(f"{file}: not a dict of tensors by name; save model.state_dict()")
    sources: dict[str, _Source] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise WeightopsError(f"{file}: {short(repr(name))} is not a dense tensor; save model.state_dict() alone")
        if value.dtype not in _DTYPES:
            raise WeightopsError(
                f"{file}: {short(name)}: safetensors does not support {value.dtype}; save the tensor in another dtype"
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise WeightopsError(
                f"{file}: the name {short(repr(name))} is not valid text; save the tensors under other names"
            ) from error
        sources[name] = _Source(file, _DTYPES[value.dtype], begins[value.storage.key], value)
    written = sum(source.nbytes for source in _without_repeats(sources).values())
    if written > MOST_GROWTH * file.stat().st_size:
        raise WeightopsError(
            f"{file}: its tensors share data and would take {written} bytes, over {MOST_GROWTH} times the size of "
            "the file; save each shared tensor once"
        )
    return sources


def _without_repeats(sources: Mapping[str, _Source]) -> dict[str, _Source]:
    """The first name of each group with the same data, shape and strides."""
    first: dict[Any, str] = {}
    for name, source in sources.items():
        tensor = source.tensor
        key = (source.begin, tensor.offset, tensor.dtype, tensor.shape, tensor.strides) if source.nbytes else name
        first.setdefault(key, name)
    return {name: sources[name] for name in first.values()}


def _write(sources: Mapping[str, _Source], file: Path) -> int:
    """Write one safetensors file with at most one tensor in memory; returns the bytes of tensor data."""
    head, offsets = build_header({name: (source.dtype, source.tensor.shape) for name, source in sources.items()})
    with file.open("wb") as stream:
        stream.write(head)
        for name in sorted(sources, key=lambda name: (offsets[name], sources[name].nbytes)):
            for data in sources[name].bytes():
                stream.write(data)
    return file.stat().st_size - len(head)


@dataclass(frozen=True)
class _Source:
    """A tensor in a pickled file.

    Attributes:
        dtype: safetensors name.
        begin: First byte of its storage in the file.
    """

    file: Path
    dtype: str
    begin: int
    tensor: PickledTensor

    @property
    def nbytes(self) -> int:
        return dtypes.nbytes(self.dtype, self.tensor.shape)

    def bytes(self) -> Iterator[memoryview]:
        """The elements in order: read in pieces if they are stored in that order, else gathered in memory."""
        if not self.nbytes:
            return
        size, tensor = dtypes.itemsize(self.dtype), self.tensor
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
        begin, end = (self.begin + element * size for element in (tensor.offset, tensor.offset + last + 1))
        with open(open_file(self.file), "rb") as stream:
            stream.seek(begin)
            if tensor.strides == _packed(tensor.shape):
                for place in range(begin, end, _PIECE):
                    yield memoryview(_exactly(stream, min(_PIECE, end - place), self.file))
                return
            raw = np.frombuffer(_exactly(stream, end - begin, self.file), f"V{size}")
        steps = tuple(stride * size for stride in tensor.strides)
        contiguous = np.ascontiguousarray(np.lib.stride_tricks.as_strided(raw, tensor.shape, steps, writeable=False))
        yield contiguous.reshape(-1).view(np.uint8).data


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps, in elements."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def _exactly(stream: BinaryIO, size: int, file: Path) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise WeightopsError(f"{file}: ended before all its data was read; download it again")
    return data
