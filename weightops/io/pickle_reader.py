"""Reads the tensor table of a PyTorch file (each tensor's offset, dtype and shape) without Python's unpickler.

A ``torch.save`` file is a program of pickle opcodes. This module supports only the opcodes and functions that a table
of tensors needs: they build text, numbers, lists, dicts and descriptions of tensors. No code from the file runs.
Source of the layout: torch 2, ``torch/serialization.py``, both its zip archives and the streams from before torch 1.6.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..errors import WeightopsError, short
from .safetensors import MOST_DIMENSIONS
from .small_files import open_file

#: Most bytes and opcodes of the pickle that describes a file's tensors: about 15,000 tensors in one file.
MOST_PICKLE: Final = 16_000_000
MOST_OPCODES: Final = 500_000
#: Most bytes of a zip archive's directory: about 150,000 records.
MOST_DIRECTORY: Final = 16_000_000

_ELEMENT: Final = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4,
    "float64": 8, "uint16": 2, "uint32": 4, "uint64": 8, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
_STORAGES: Final = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Storage:
    """A run of elements that tensors are cut from.

    Attributes:
        dtype: torch's name, ``uint8`` for an untyped one.
        length: Number of elements.
    """

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as the pickle describes it; offset and strides count elements of ``dtype``."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _ObjectsError(Exception):
    """The pickle contains something other than a table of tensors."""


@dataclass(frozen=True)
class _Named:
    """The name of a class or function in the pickle; it is never imported."""

    name: str


def read_table(file: Path) -> tuple[Any, dict[str, int]]:
    """The content of a file (a dict of tensors, if the file is valid), and the offset of each storage in the file.

    Raises:
        WeightopsError: the file cannot be read, is damaged, contains objects other than tensors or exceeds a limit;
            or a tensor extends past the end of its data.
    """
    try:
        with open(open_file(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            archive = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            value, records = _archive(stream, size) if archive else _stream(stream, size)
            _check_records(file, value, records)
    except _ObjectsError as error:
        raise WeightopsError(
            f"{file}: contains Python objects besides tensors ({short(str(error))}), and unpickling them can run any "
            "code; if you trust the file, load it with the program that wrote it and save it as .safetensors"
        ) from error
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = f": {short(str(error))}" if type(error) is ValueError else ""
        raise WeightopsError(
            f"{file}: not a readable PyTorch file (damaged or cut short{reason}); download it again"
        ) from error
    return value, {key: begin for key, (begin, _) in records.items()}


def _check_records(file: Path, value: Any, records: dict[str, tuple[int, int]]) -> None:
    """Check that every tensor is inside its storage, and every storage inside its record."""
    for name, tensor in value.items() if isinstance(value, dict) else ():
        if not isinstance(tensor, PickledTensor):
            continue
        storage = tensor.storage
        needed = storage.length * _ELEMENT[storage.dtype]
        if storage.key not in records or records[storage.key][1] < needed:
            has = records[storage.key][1] if storage.key in records else 0
            raise WeightopsError(
                f"{file}: {short(name)}: its data should have {needed} bytes, but the file has {has}; download it again"
            )
        if fault := _beyond(tensor, needed // _ELEMENT[tensor.dtype]):
            raise WeightopsError(f"{file}: {short(name)}: {fault}; save model.state_dict() with contiguous tensors")


def _beyond(tensor: PickledTensor, length: int) -> str:
    """The problem of a tensor whose shape does not fit ``length`` elements of data; empty if it fits."""
    count, nonzero, last = 1, 1, tensor.offset
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        count, nonzero, last = count * size, nonzero * (size or 1), last + (size - 1) * stride
        if nonzero >= 1 << 60 or count > length > 0:
            return f"its shape {short(tensor.shape)} has more elements than its data ({length})"
    return f"it extends past the end of its data ({length} elements)" if count and last >= length else ""


# --- the two layouts of a file ---------------------------------------------------------------------------------------

_Records = dict[str, tuple[int, int]]


def _archive(stream: BinaryIO, size: int) -> tuple[Any, _Records]:
    """A zip archive: ``NAME/data.pkl``, and each storage in ``NAME/data/KEY``; nothing is compressed."""
    _check_directory(stream, size)
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        named = [name for name in entries if name.endswith("/data.pkl")]
        if len(named) != 1:
            raise ValueError(f"it has {len(named)} data.pkl records, expected one")
        home = named[0].removesuffix("data.pkl")
        if f"{home}byteorder" in entries and _record(stream, entries[f"{home}byteorder"], size, 16) != b"little":
            raise ValueError("its byte order is not little-endian")
        value = _value(io.BytesIO(_record(stream, entries[named[0]], size, MOST_PICKLE)))
        prefix = f"{home}data/"
        stored = [(name, entry) for name, entry in entries.items() if name.startswith(prefix)]
        return value, {name.removeprefix(prefix): _place(stream, entry, size) for name, entry in stored}


def _check_directory(stream: BinaryIO, size: int) -> None:
    """Refuse a directory that would take much memory, before zipfile reads it."""
    stream.seek(max(0, size - (1 << 16) - 100))
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        raise ValueError("its zip directory is missing")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07":  # the 64-bit form takes precedence
        length = int.from_bytes(tail[end - 36 : end - 28], "little")
    if length > MOST_DIRECTORY:
        raise ValueError(f"its zip directory has {length} bytes, the limit is {MOST_DIRECTORY}")


def _place(stream: BinaryIO, entry: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """The offset of a record's bytes in the file, and their number."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise ValueError("a record is compressed or encrypted")
    stream.seek(entry.header_offset)
    head = stream.read(30)
    if head[:4] != b"PK\x03\x04":
        raise ValueError("a record does not have its header")
    begin = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    if begin + entry.file_size > size:
        raise ValueError("a record extends past the end of the file")
    return begin, entry.file_size


def _record(stream: BinaryIO, entry: zipfile.ZipInfo, size: int, most: int) -> bytes:
    begin, length = _place(stream, entry, size)
    if length > most:
        raise ValueError(f"a record has {length} bytes, the limit is {most}")
    stream.seek(begin)
    return stream.read(length)


def _stream(stream: BinaryIO, size: int) -> tuple[Any, _Records]:
    """The format from before torch 1.6: five pickles, then each storage after its length."""
    pickles = io.BytesIO(stream.read(MOST_PICKLE))
    if _value(pickles) != _MAGIC or _value(pickles) != _PROTOCOL:
        raise ValueError("neither a zip archive nor an old torch stream")
    machine = _value(pickles)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its byte order is not little-endian")
    storages: dict[str, Storage] = {}
    value, keys = _value(pickles, storages), _value(pickles)
    if not isinstance(keys, list):
        raise ValueError("the list of its storages is missing")
    records: _Records = {}
    begin = pickles.tell()
    for key in keys:
        storage = storages[key]
        stream.seek(begin)
        length = int.from_bytes(stream.read(8), "little")
        span = length * _ELEMENT[storage.dtype]
        if begin + 8 + span > size:
            raise ValueError("its data extends past the end of the file")
        records[storage.key] = begin + 8, span
        begin += 8 + span
    return value, records


# --- the pickle ------------------------------------------------------------------------------------------------------

_MARK: Final = object()
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS: Final = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
)
_EMPTY: Final[dict[str, Callable[[], Any]]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


_PLAIN_TYPES: Final = (_Named("torch.Tensor"), _Named("torch.nn.parameter.Parameter"))


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    for number, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if number >= MOST_OPCODES:
            raise ValueError(f"its pickle has more than {MOST_OPCODES} opcodes")
        yield code.name, argument


def _value(stream: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """The value of one pickle; leaves the stream right after it.

    Args:
        storages: Gets the storages that the pickle names, by key.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, argument in _opcodes(stream):
        if code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-_TUPLES[code] :])]
        elif code == "GLOBAL":
            stack.append(_Named(argument.replace(" ", ".", 1)))
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif code == "STOP":
            return stack.pop()
        elif code != "PROTO":
            _combine(code, stack)
    raise ValueError("its pickle has no end")


def _combine(code: str, stack: list[Any]) -> None:
    """Run an opcode that combines values from the stack."""
    if code in ("TUPLE", "LIST", "DICT"):
        items = _to_mark(stack)
        stack.append(tuple(items) if code == "TUPLE" else items if code == "LIST" else _into({}, items))
    elif code == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_built(function, arguments))
    elif code in ("SETITEM", "SETITEMS"):
        items = _to_mark(stack) if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
        _into(stack[-1], items)
    elif code in ("APPEND", "APPENDS"):
        items = _to_mark(stack) if code == "APPENDS" else [stack.pop()]
        if not isinstance(stack[-1], list):
            raise ValueError("items are appended to something that is not a list")
        stack[-1].extend(items)
    elif code == "BUILD":  # sets attributes of an OrderedDict: a state_dict's _metadata
        stack.pop()
        if not isinstance(stack[-1], dict):
            raise _ObjectsError("an object with a state")
    else:
        raise _ObjectsError(f"opcode {code}")


def _to_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1
    while stack[place] is not _MARK:  # an IndexError past the bottom means a damaged file
        place -= 1
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _into(table: Any, items: list[Any]) -> Any:
    if not isinstance(table, dict) or len(items) % 2:
        raise ValueError("keys and values are put into something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # hashing other keys could take forever: they may be nested tuples
        if not isinstance(key, str) and type(key) is not int:
            raise _ObjectsError("a dict with keys that are not text")
        table[key] = value
    return table


def _storage(identity: Any, storages: dict[str, Storage] | None) -> Storage:
    """A persistent id: ("storage", type, key, location, length), in old streams followed by a view."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise _ObjectsError("a reference to something other than a storage")
    kind, key, length = identity[1], identity[2], identity[4]
    name = kind.name.rpartition(".") if isinstance(kind, _Named) else ("", "", "")
    if name[0] not in ("torch", "torch.storage") or name[2] not in _STORAGES or (len(identity) == 6 and identity[5]):
        raise _ObjectsError("a storage of an unknown type")
    if not isinstance(key, str) or type(length) is not int or not 0 <= length < 1 << 60:
        raise ValueError("a storage has no valid key or length")
    storage = Storage(key, _STORAGES[name[2]], length)
    if storages is not None:
        storages[key] = storage
    return storage


def _built(function: Any, arguments: Any) -> Any:
    """The result of a call in the pickle: a dict, a tensor, or a parameter (its tensor)."""
    name = function.name if isinstance(function, _Named) else "a call of something that is not a function"
    if not isinstance(arguments, tuple):
        raise ValueError("a call has no arguments")
    if name == "collections.OrderedDict":
        pairs = arguments[0] if arguments else []
        if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError("a dict is not built from pairs")
        return _into({}, [item for pair in pairs for item in pair])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        if arguments and isinstance(arguments[0], PickledTensor):
            return arguments[0]
        raise ValueError("a parameter does not have a tensor")
    if name == "torch._tensor._rebuild_from_type_v2" and arguments[1] in _PLAIN_TYPES:
        return _tensor(arguments[2], untyped=arguments[0] == _Named("torch._utils._rebuild_tensor_v3"))
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
        return _tensor(arguments, untyped=name.endswith("v3"))
    raise _ObjectsError(name)


def _tensor(arguments: tuple[Any, ...], *, untyped: bool) -> PickledTensor:
    """(storage, offset, shape, strides, requires_grad, hooks, metadata); if untyped, a dtype before metadata."""
    storage, offset, shape, strides = arguments[:4]
    dtype = storage.dtype if isinstance(storage, Storage) else None
    if untyped:
        dtype = arguments[6].name.removeprefix("torch.") if isinstance(arguments[6], _Named) else None
    if not isinstance(storage, Storage) or dtype not in _ELEMENT:
        raise _ObjectsError("a tensor of an unknown type")
    if any(arguments[6 + untyped :]):
        raise _ObjectsError("a tensor with a pending conjugation or negation")
    lengths = (shape, strides)
    if not all(
        isinstance(sizes, tuple) and all(type(n) is int and 0 <= n < 1 << 60 for n in sizes) for sizes in lengths
    ):
        raise ValueError("a tensor has no valid shape or strides")
    sound = type(offset) is int and 0 <= offset < 1 << 60
    if not sound or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions (the limit is {MOST_DIMENSIONS}) or no valid offset")
    return PickledTensor(storage, dtype, offset, shape, strides)
