"""The one reader of rows: JSON Lines (plain, ``.gz``, standard input), Parquet, or a data set of the hub.

JSON Lines are read by the standard library, line by line, so that a bad line is named and a text that looks like a date
stays a text; Parquet and the hub go through ``datasets``, which is imported only for them.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..errors import WeightopsError
from .row import FirstFaults, Row, short

LINE_BYTES = 64 * 2**20
"""Longest line in bytes; a longer one is a fault."""
UNPACKED_BYTES, UNPACKED_TIMES = 128 * 2**20, 100
"""A ``.gz`` file may unpack to this many bytes, or this many times its own size, whichever is more."""
STDIN_BYTES = 4 * 2**30
"""Bytes that standard input may have."""
STDIN = "-"

Record = dict[str, Any]


def read_rows(
    files: Sequence[str | Path] = (),
    *,
    hub: str | None = None,
    subset: str | None = None,
    split: str = "train",
    only: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    allow_empty: bool = False,
    check: Callable[[Row], Iterable[str]] = lambda row: (),
) -> list[Row]:
    """The rows of files and of a data set of the hub, in order.

    Args:
        files: JSON Lines (``.gz`` is unpacked), ``.parquet``, or ``-`` for JSON Lines on standard input.
        hub: ``org/name`` or ``org/name@revision``, read after the files.
        subset: Configuration of the hub data set.
        split: Split of the hub data set.
        only: Keep the rows whose fields, as the data names them, have these values.
        rename: Field of a row to the data's name for it.
        allow_empty: If no row is left, return an empty list and do not raise.
        check: What a task finds wrong with a row, to be reported together with the lines that cannot be read.

    Raises:
        WeightopsError: files that cannot be read, lines that are not JSON objects or not what ``check`` wants (the
            first ten faults, each with all its lines), a renamed field that no row has, or no row is left.
    """
    faults, renamed = FirstFaults("lines"), rename or {}
    rows: list[Row] = []
    count, names = 0, set[str]()
    for place, record in _records(files, hub, subset, split, faults):
        count += 1
        names |= record.keys()
        if all(record.get(name) == value for name, value in (only or {}).items()):
            rows.append(Row.of(place, _renamed(record, renamed)))
            for fault in check(rows[-1]):
                faults.add(place, fault)
    whole = ", ".join([*("stdin" if str(file) == STDIN else str(file) for file in files), *([hub] if hub else [])])
    _check_rename(names, renamed, whole)
    faults.raise_any()
    if not rows and not allow_empty:
        problem = f"only: none of {count} rows has {dict(only or {})}" if count else "has no rows"
        raise WeightopsError(f"{whole}: {problem}")
    return rows


def _records(
    files: Sequence[str | Path], hub: str | None, subset: str | None, split: str, faults: FirstFaults
) -> Iterator[tuple[str, Record]]:
    """Place and record of each row; the hub is asked only where the files have no fault."""
    for file in files:
        yield from ((place, record) for place, record, _ in _file_records(file, faults))
    if hub is not None:
        faults.raise_any()
        yield from ((f"{hub}, row {number}", record) for number, record in enumerate(_hub(hub, subset, split), 1))


def _check_rename(names: Set[str], rename: Mapping[str, str], files: str) -> None:
    """Check that each renamed field is in some row, by the names of the fields in all rows.

    Raises:
        WeightopsError: those that no row has.
    """
    missing = [theirs for theirs in rename.values() if theirs not in names]
    if names and missing:
        problems = [f"{files}: rename: no row has a field {short(theirs)}" for theirs in missing]
        raise WeightopsError(*(f"{problem}; check the spelling" for problem in problems))


def _renamed(record: Record, rename: Mapping[str, str]) -> Record:
    return {**record, **{ours: record.get(theirs) for ours, theirs in rename.items()}}


def read_lines(files: Sequence[str | Path], rename: Mapping[str, str] | None = None) -> list[tuple[Row, bytes]]:
    """The rows of files, each with its line, in their order.

    A line is given byte for byte as the file holds it, without its end and a byte order mark. A row of Parquet is
    written as a line of JSON.

    Args:
        files: As :func:`read_rows`.
        rename: As :func:`read_rows`; the line keeps its names.

    Raises:
        WeightopsError: as :func:`read_rows`, and a row of Parquet that holds what JSON cannot.
    """
    faults = FirstFaults("lines")
    lines: list[tuple[str, Record, bytes]] = []
    for file in files:
        for place, record, line in _file_records(file, faults):
            try:
                written = _as_json(record) if line is None else line
            except (TypeError, ValueError) as error:
                faults.add(place, f"cannot be written as JSON ({error}); convert the file to JSON Lines first")
            else:
                lines.append((place, record, written))
    faults.raise_any()
    names = ", ".join("stdin" if str(file) == STDIN else str(file) for file in files)
    if not lines:
        raise WeightopsError(f"{names}: no rows")
    _check_rename({name for _, record, _ in lines for name in record}, rename or {}, names)
    return [(Row.of(place, _renamed(record, rename or {})), line) for place, record, line in lines]


def _as_json(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _file_records(file: str | Path, faults: FirstFaults) -> Iterator[tuple[str, Record, bytes | None]]:
    """Place, record and line of each row of a file (Parquet has no lines); faults of single lines go to ``faults``."""
    name = str(file)
    if name.endswith(".parquet"):
        yield from ((f"{name}, row {number}", record, None) for number, record in enumerate(_parquet(name), 1))
        return
    shown = "stdin" if name == STDIN else name
    try:
        with _opened(name) as (stream, limit):
            for number, line in _lines(stream, limit, shown, faults):
                record = _record(line, number == 1)
                if isinstance(record, str):
                    faults.add(f"{shown}, line {number}", record)
                elif record is not None:
                    yield f"{shown}, line {number}", record, line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a name that is not valid for any file
        reason = getattr(error, "strerror", None) or error
        faults.add(shown, f"cannot be read ({reason}); name a file of JSON Lines")


@contextmanager
def _opened(name: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file's bytes, unpacked, and how many of them may be read; ``None`` for no limit."""
    if name == STDIN:
        yield getattr(sys.stdin, "buffer", None) or io.BytesIO(), STDIN_BYTES
        return
    with _regular(name) as raw:
        if name.endswith(".gz"):
            limit = max(UNPACKED_BYTES, UNPACKED_TIMES * os.fstat(raw.fileno()).st_size)
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)), limit
        else:
            yield raw, None


def _regular(name: str) -> IO[bytes]:
    """Open a regular file; pipes and devices, which may never end, are refused."""
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        raise OSError(
            0, "a folder, not a file" if stat.S_ISDIR(kind) else "a pipe or a device, not a file; write it to one first"
        )
    return os.fdopen(handle, "rb")


def _lines(stream: IO[bytes], limit: int | None, name: str, faults: FirstFaults) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank, within the bounds."""
    total = number = 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        total += len(line)
        if len(line) > LINE_BYTES:
            faults.add(f"{name}, line {number}", f"longer than {LINE_BYTES >> 20} MiB; put one row on each line")
            return
        if limit is not None and total > limit:
            faults.add(f"{name}, line {number}", f"more than {limit >> 20} MiB of rows; split it, or unpack it first")
            return
        if line.strip():
            yield number, line


def _record(line: bytes, first: bool) -> Record | str | None:
    """A line's object, or its fault; ``None`` for a byte order mark alone."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: JSON nested a hundred thousand levels deep
        return "not valid JSON"
    return record if isinstance(record, dict) else "not a JSON object; write one object on each line"


def _parquet(name: str) -> list[Record]:
    try:
        _regular(name).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightopsError(f"{name}: cannot be read ({reason}); name a Parquet file") from error
    datasets = _datasets()
    try:
        records: list[Record] = datasets.Dataset.from_parquet(name, keep_in_memory=True).to_list()
        return records
    except Exception as error:  # datasets raises what pyarrow, fsspec and itself raise
        raise WeightopsError(f"{name}: not a Parquet file that `datasets` reads ({_first_line(error)})") from error


def _hub(spec: str, subset: str | None, split: str) -> list[Record]:
    name, _, revision = spec.partition("@")
    datasets = _datasets()
    try:
        records: list[Record] = datasets.load_dataset(name, subset, split=split, revision=revision or None).to_list()
        return records
    except Exception as error:  # as above
        raise WeightopsError(f"{spec}: `datasets` cannot load it ({_first_line(error)})") from error


def _datasets() -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise WeightopsError("datasets: not installed; pip install 'weightops[train]'") from error
    datasets.disable_progress_bars()
    return datasets


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
