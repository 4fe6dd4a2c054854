"""The safetensors format: eight bytes of header length, a JSON header, then the tensors without gaps.

We did not write the header, so everything in it is checked before any data is read. The format's rules (no gaps, no
overlap, each name once) are enforced as strictly as in the reference reader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import dtypes
from ..errors import WeightopsError, short
from .small_files import open_file

#: Most bytes of a header: about 240,000 tensors; the reference reader allows 100 MB, which can need gigabytes.
MAX_HEADER = 32_000_000
#: Most commas and opening brackets of a JSON text. A text has at most that many values, which limits memory.
MOST_MARKS = 2_000_000
#: Most dimensions of a tensor; torch's kernels stop at 64, and no model has more than 6.
MOST_DIMENSIONS = 32
_WORD = 1 << 64


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its file, offset, dtype and shape.

    Attributes:
        dtype: safetensors name, for example ``BF16``.
        offset: First byte, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return dtypes.nbytes(self.dtype, self.shape)

    @property
    def count(self) -> int:
        return dtypes.count(self.shape)

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file that hold it: itself."""
        return (self,)


@dataclass(frozen=True)
class Header:
    """A file's tensors, in the order of the file, and its metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Read and check the header of one file.

    Raises:
        WeightopsError: the file cannot be read, or its header does not describe it.
    """
    try:
        with open(open_file(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise WeightopsError(
                    f"{file}: not a complete safetensors file (the header should have {length} bytes, the limit is "
                    f"{MAX_HEADER}, the file has {size}); download it again"
                )
            raw = stream.read(length)
    except OSError as error:
        raise WeightopsError(
            f"{file}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    return parse_header(raw, file, data_size=size - 8 - length)


def parse_header(raw: bytes, file: Path, data_size: int) -> Header:
    """Check a header against the size of the data that follows it.

    Raises:
        WeightopsError: the header is wrong; the message names the file, the tensor and the problem.
    """
    entries = _json_object(raw, file)
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightopsError(f"{file}: __metadata__ must map text to text; the file is damaged, download it again")
    start = 8 + len(raw)
    spans = sorted((_span(name, entry, file, data_size), name) for name, entry in entries.items())
    end = 0
    for (begin, stop), name in spans:
        if begin != end:
            fault = "overlaps the tensor before it" if begin < end else f"leaves {begin - end} bytes before it unused"
            raise WeightopsError(f"{file}: {short(name)}: {fault}; the header is damaged, download the file again")
        end = stop
    if end != data_size:
        fault = f"the header describes {end} bytes of data, but the file has {data_size}"
        raise WeightopsError(f"{file}: {fault}; the file is truncated or damaged, download it again")
    tensors = tuple(
        StoredTensor(name, entries[name]["dtype"], tuple(entries[name]["shape"]), file, start + begin)
        for (begin, _), name in spans
    )
    return Header(tensors, metadata)


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The head of a new file (length, JSON, padding) and each tensor's offset in the file.

    Wider dtypes come first, then names in order, so that every tensor starts at a multiple of its element size.

    Args:
        tensors: dtype and shape by name.
        metadata: Text by name, beside ``format``.
    """
    order = sorted(tensors, key=lambda name: (-dtypes.BITS[tensors[name][0]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position, begins = 0, {}
    for name in order:
        dtype, shape = tensors[name]
        begins[name] = position
        position += dtypes.nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[name], position]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()}


def _json_object(raw: bytes, file: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            (
                key + value if isinstance(value, str) else key
            ).encode()  # half a surrogate pair raises: it is not valid text
            if key in entries:
                raise WeightopsError(
                    f"{file}: {short(key)} is listed twice in the header; the file is damaged, download it again"
                )
            entries[key] = value
        return entries

    try:
        refuse_crowded(raw)
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        reason = f" within the limits ({error})" if type(error) is ValueError else ""
        raise WeightopsError(
            f"{file}: the safetensors header is not valid JSON{reason}; the file is damaged, download it again"
        ) from error
    if not isinstance(entries, dict):
        raise WeightopsError(
            f"{file}: the safetensors header is not a JSON object; the file is damaged, download it again"
        )
    return entries


def _whole(digits: str) -> float:
    """A JSON integer, limited to 65 bits; -0 is a float, as in the reference reader."""
    if len(digits) > 20:
        return -_WORD if digits.startswith("-") else _WORD
    return -0.0 if digits == "-0" else int(digits)


def refuse_crowded(raw: bytes) -> None:
    """Refuse a JSON text whose values would take too much memory, before parsing it.

    Raises:
        ValueError: the text has more than :data:`MOST_MARKS` commas and opening brackets.
    """
    if len(raw) > MOST_MARKS and sum(map(raw.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise ValueError(f"more than {MOST_MARKS} values")


def _bits(dtype: str, shape: list[int]) -> int:
    """Bits of a tensor, with a length of 0 counted as 1; stops multiplying at 2^64."""
    bits = dtypes.BITS[dtype]
    for length in shape:
        if bits >= _WORD:
            break
        bits *= length or 1
    return bits


def _span(name: str, entry: Any, file: Path, data_size: int) -> tuple[int, int]:
    """First and last byte of a tensor's data, after checking everything in its header entry."""
    where = f"{file}: {short(name)}"
    again = "the header is damaged, download the file again"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightopsError(f"{where}: an entry needs dtype, shape and data_offsets; {again}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes.BITS:
        raise WeightopsError(f"{where}: unknown dtype {short(repr(dtype))}; supported: {', '.join(dtypes.BITS)}")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise WeightopsError(f"{where}: the shape is not a list of lengths; {again}")
    if len(shape) > MOST_DIMENSIONS:
        raise WeightopsError(f"{where}: it has {len(shape)} dimensions, the limit is {MOST_DIMENSIONS}; {again}")
    if _bits(dtype, shape) >= _WORD:
        raise WeightopsError(f"{where}: the shape {tuple(shape)} is too large for any file; {again}")
    bits = dtypes.BITS[dtype] * dtypes.count(tuple(shape))
    if bits % 8:
        raise WeightopsError(f"{where}: {dtype} of shape {tuple(shape)} does not fill whole bytes; {again}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise WeightopsError(f"{where}: data_offsets is not a pair of numbers; {again}")
    begin, end = offsets
    if not 0 <= begin <= end <= data_size:
        raise WeightopsError(
            f"{where}: data_offsets {begin}..{end} are outside the file's {data_size} bytes of data; {again}"
        )
    if end - begin != bits // 8:
        raise WeightopsError(
            f"{where}: {dtype} of shape {tuple(shape)} needs {bits // 8} bytes, but the header gives it {end - begin}; "
            f"{again}"
        )
    return begin, end
