"""Checks a GGUF file's header before any other reader opens the file: counts, lengths, offsets and claimed sizes.

Source of the layout: the GGUF specification in ggml, ``docs/gguf.md``, versions 2 and 3.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import WeightopsError, short
from .small_files import open_file

#: Most bytes of a header. A vocabulary of 260,000 tokens with its merges takes about 15 MB.
MOST_HEADER: Final = 64_000_000
#: Most keys, tensors, and array elements (all arrays together).
MOST_KEYS: Final = 10_000
MOST_TENSORS: Final = 100_000
MOST_ELEMENTS: Final = 2_000_000
MOST_DIMENSIONS: Final = 4

_STRING, _ARRAY = 8, 9
_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BLOCK = re.compile(r"(?:^|\.)blk\.([0-9]{1,9})\.")


@dataclass(frozen=True)
class GgufTensor:
    """What a header says of a tensor.

    Attributes:
        kind: GGML's name of its dtype: ``Q4_1``, ``F32``.
        shape: Outermost side first, as in Hugging Face folders; the file has it the other way round.
        nbytes: As it is stored.
    """

    kind: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass
class GgufHeader:
    """The content of a header that weightops uses.

    Attributes:
        values: Numbers and texts by key; ``None`` for an array.
        elements: Number of elements of all tensors together.
        blocks: Number of layers that have a tensor, over all stacks of layers.
        widest: The longest side of any tensor.
        tensors: By their names in the file.
    """

    values: dict[str, Any] = field(default_factory=dict)
    elements: int = 0
    blocks: int = 0
    widest: int = 0
    tensors: dict[str, GgufTensor] = field(default_factory=dict)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        WeightopsError: the file cannot be read, is not GGUF, exceeds a limit, claims more data than it contains, or
            claims more layers, heads or experts than its tensors have.
    """
    try:
        with open(open_file(path), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            raw = stream.read(MOST_HEADER)
    except OSError as error:
        raise WeightopsError(f"{path}: {error.strerror}; name a .gguf file") from error
    if raw[:4] != b"GGUF":
        raise WeightopsError(f"{path}: not a GGUF file (it begins with {raw[:4]!r}); download it again")
    try:
        return _header(_Bytes(raw, 4), size)
    except struct.error as error:
        reason = f"its header is longer than {MOST_HEADER} bytes" if size > MOST_HEADER else "it is cut short"
        raise WeightopsError(f"{path}: not a readable GGUF file ({reason}); download it again") from error
    except ValueError as error:
        raise WeightopsError(f"{path}: not a readable GGUF file ({error}); download it again") from error


class _Bytes:
    """Bytes with a read position; reading past the end raises ``struct.error``."""

    def __init__(self, raw: bytes, place: int) -> None:
        self.raw = raw
        self.place = place

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.raw, self.place)
        self.place += struct.calcsize(f"<{form}")
        return value

    def skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self.raw):
            raise struct.error

    def text(self) -> str:
        length = self.number("Q")
        begin = self.place
        self.skip(length)
        try:
            return self.raw[begin : self.place].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("a text is not UTF-8") from error


def _header(raw: _Bytes, size: int) -> GgufHeader:
    header = GgufHeader()
    version, tensors, keys = raw.number("I"), raw.number("Q"), raw.number("Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; weightops reads versions 2 and 3")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        raise ValueError(f"it has {tensors} tensors and {keys} keys, the limits are {MOST_TENSORS} and {MOST_KEYS}")
    room = MOST_ELEMENTS
    for _ in range(keys):
        key, kind = raw.text(), raw.number("I")
        if key in header.values:
            raise ValueError(f"key {short(key)} is listed twice")
        if kind == _ARRAY:
            room -= _skip_array(raw, room)
            header.values[key] = None
        else:
            header.values[key] = _value(raw, kind)
    _read_tensors(raw, tensors, size, header)
    _check_counts(header)
    return header


def _value(raw: _Bytes, kind: int) -> Any:
    if kind == _STRING:
        return raw.text()
    if kind not in _FORMATS:
        raise ValueError(f"a value has the unknown type {kind}")
    return raw.number(_FORMATS[kind])


def _skip_array(raw: _Bytes, room: int) -> int:
    """Step over an array and return its number of elements."""
    kind, length = raw.number("I"), raw.number("Q")
    if length > room:
        raise ValueError(f"its arrays have more than {MOST_ELEMENTS} elements")
    if kind == _STRING:
        for _ in range(length):
            raw.skip(raw.number("Q"))
    elif kind in _FORMATS:
        raw.skip(length * struct.calcsize(f"<{_FORMATS[kind]}"))
    else:
        raise ValueError(f"an array has the unknown type {kind}")
    return int(length)


def _read_tensors(raw: _Bytes, tensors: int, size: int, header: GgufHeader) -> None:
    """Read the tensors' shapes and offsets, and check that all of them fit into the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {int(kind.value): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}
    blocks: set[str] = set()
    names: set[str] = set()
    ends, total = [0], 0
    for _ in range(tensors):
        name, dimensions = raw.text(), raw.number("I")
        if name in names or dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {short(name)} is listed twice, or has more than {MOST_DIMENSIONS} dimensions")
        names.add(name)
        sides = [raw.number("Q") for _ in range(dimensions)]
        kind, offset = raw.number("I"), raw.number("Q")
        if kind not in sizes:
            raise ValueError(f"tensor {short(name)} has the unknown type {kind}")
        elements = 1
        for side in sides:
            elements *= side
        block, block_bytes = sizes[kind]
        if (sides or [1])[0] % block or elements > 1 << 60:
            raise ValueError(f"tensor {short(name)} has the shape {sides}, which its type does not allow")
        length = elements // block * block_bytes
        ends.append(offset + length)
        total += length
        header.elements += elements
        header.tensors[name] = GgufTensor(GGMLQuantizationType(kind).name, tuple(reversed(sides)), length)
        header.widest = max(header.widest, *sides, 0)
        if match := _BLOCK.search(name):
            blocks.add(f"{name[: match.start()]}.{int(match[1])}")
    header.blocks = len(blocks)
    alignment = header.values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16:
        raise ValueError(f"the alignment {short(alignment)} is not valid")
    begin = -(-raw.place // alignment) * alignment
    if begin + max(ends) > size or total > size:
        raise ValueError(f"its tensors need {max(begin + max(ends), total)} bytes, but the file has {size}")


def _check_counts(header: GgufHeader) -> None:
    """Check the claimed counts of layers, heads and experts: a reader would allocate that many."""
    for key, value in header.values.items():
        if not key.endswith("_count") or key.startswith(("general.", "tokenizer.", "split.", "quantize.")):
            continue
        most = header.blocks if key.endswith(".block_count") else max(header.widest, header.blocks)
        if type(value) is int and value > most:
            raise ValueError(f"{short(key)} is {value}, but its tensors have {most}")
