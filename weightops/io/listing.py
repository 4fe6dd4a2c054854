"""Tensors as they are listed: names, shapes and dtypes from headers alone, in every format. Nothing is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import dtypes
from ..errors import WeightopsError, short
from .gguf_header import read_gguf_header
from .gguf_names import hub_tensor_name
from .pickle_reader import PickledTensor, read_table
from .pickled import pickled_files
from .quantised import READ_AS, QuantisedTensor
from .safetensors import StoredTensor

_SHORT: Final = {
    **dtypes.FROM_TORCH, "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


@dataclass(frozen=True)
class ListedTensor:
    """A tensor as its file describes it.

    Attributes:
        dtype: As it is stored: safetensors' name, or GGML's (``Q4_1``) in a GGUF file.
        nbytes: As it is stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path

    @property
    def count(self) -> int:
        return dtypes.count(self.shape)


@dataclass(frozen=True)
class Listing:
    """The tensors of a source, and what a reader must know about them.

    Attributes:
        tensors: By name.
        notes: For example that the names are the file's own.
    """

    tensors: Mapping[str, ListedTensor]
    notes: tuple[str, ...] = field(default=())


def list_stored(tensors: Mapping[str, StoredTensor]) -> Listing:
    """The tensors of safetensors files. Those of 8 bits have their stored dtype, and the bytes of their scales too."""
    listed = {
        name: ListedTensor(name, t.parts[0].dtype, t.shape, sum(part.nbytes for part in t.parts), t.file)
        for name, t in tensors.items()
    }
    quantised = sum(isinstance(tensor, QuantisedTensor) for tensor in tensors.values())
    note = f"{quantised} tensors are stored in 8 bits; they are read as {READ_AS}, multiplied by their scales"
    return Listing(listed, (note,) if quantised else ())


def list_gguf(file: Path) -> Listing:
    """The tensors of a GGUF file by Hugging Face's names where those are known, with the dtypes as stored.

    Raises:
        WeightopsError: the header cannot be read, or passes a bound.
    """
    header = read_gguf_header(file)
    architecture = header.values.get("general.architecture")
    renamed = {name: hub_tensor_name(name, architecture) for name in header.tensors}
    if len(set(renamed.values()) - {None}) < sum(known is not None for known in renamed.values()):
        renamed = dict.fromkeys(renamed)  # two tensors of one name: a strange file is shown as it is
    tensors = {}
    for name, tensor in header.tensors.items():
        shown = renamed[name] or name
        tensors[shown] = ListedTensor(shown, tensor.kind, tensor.shape, tensor.nbytes, file)
    unknown = sum(known is None for known in renamed.values())
    names = f"{unknown} of {len(renamed)} tensors have the GGUF file's own names; Hugging Face's are not known for them"
    return Listing(tensors, (names,) if unknown else ())


def list_pickled(path: Path) -> Listing:
    """The tensors of a ``.bin`` file, or of a folder of them, without running the files' code.

    Raises:
        WeightopsError: a file is missing, damaged, passes a bound, or holds objects besides tensors.
    """
    tensors: dict[str, ListedTensor] = {}
    for file in pickled_files(path):
        table, _ = read_table(file)
        if not isinstance(table, dict) or not table:
            raise WeightopsError(f"{file}: not a table of tensors by name; save model.state_dict()")
        for name, value in table.items():
            if not isinstance(name, str) or not isinstance(value, PickledTensor):
                raise WeightopsError(
                    f"{file}: {short(repr(name))} is not a dense tensor; save model.state_dict() alone"
                )
            if value.dtype not in _SHORT:
                raise WeightopsError(
                    f"{file}: {short(name)}: {value.dtype} has no safetensors form; save a plain dtype"
                )
            dtype = _SHORT[value.dtype]
            tensors[name] = ListedTensor(name, dtype, value.shape, dtypes.nbytes(dtype, value.shape), file)
    return Listing(tensors)
