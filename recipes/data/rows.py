"""Rows to train on: JSON Lines, Parquet, or a data set of the hub.

JSON Lines are read by the standard library, so that a bad line is named and a text that looks like a date stays a text;
Parquet and the hub go through ``datasets``.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any, TypeVar

from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Data

T = TypeVar("T")
Record = dict[str, Any]


def load_rows(data: Data) -> list[Record]:
    """The rows that a recipe asks for, their fields renamed, in the order of the files.

    Raises:
        WeightopsError: with everything that cannot be read, or no rows that are wanted.
    """
    rows = _hub(data) if data.hub else [row for file in data.files for row in read_rows(Path(file))]
    wanted = [row for row in rows if all(row.get(name) == value for name, value in data.only.items())]
    if not wanted:
        said = f"none of {len(rows)} rows has {dict(data.only)}" if rows else "no rows"
        raise WeightopsError(f"{data.hub or ', '.join(data.files)}: {said}")
    return [{**row, **{ours: row.get(theirs) for ours, theirs in data.rename.items()}} for row in wanted]


def read_rows(file: Path) -> list[Record]:
    """The rows of a JSON Lines or Parquet file.

    Raises:
        WeightopsError: it cannot be read, or a line is not a JSON object; the line is named.
    """
    if file.suffix == ".parquet":
        return _parquet(file)
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        lines = raw.decode("utf-8").split("\n")
    except (OSError, EOFError) as error:
        said = getattr(error, "strerror", None) or error
        raise WeightopsError(f"{file}: cannot be read ({said}); name a JSON Lines file") from error
    except UnicodeDecodeError as error:
        raise WeightopsError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WeightopsError(f"{file}, line {number}: not valid JSON") from error
        if not isinstance(row, dict):
            raise WeightopsError(f"{file}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def split(rows: list[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Rows to train on and rows held out: a share drawn by the seed, both in their order.

    >>> split([0, 1, 2, 3], 0.5, seed=1)
    ([1, 3], [0, 2])
    """
    held = set(random.Random(f"{seed}/held out").sample(range(len(rows)), round(share * len(rows))))
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def _parquet(file: Path) -> list[Record]:
    if not file.is_file():
        raise WeightopsError(f"{file}: cannot be read (No such file or directory); name a Parquet file")
    datasets = _datasets()
    try:
        found: list[Record] = datasets.Dataset.from_parquet(str(file), keep_in_memory=True).to_list()
        return found
    except Exception as error:  # datasets raises what pyarrow, fsspec and itself raise
        raise WeightopsError(f"{file}: not a Parquet file that `datasets` reads ({_said(error)})") from error


def _hub(data: Data) -> list[Record]:
    name, _, revision = str(data.hub).partition("@")
    datasets = _datasets()
    try:
        found = datasets.load_dataset(name, data.subset, split=data.split, revision=revision or None)
        rows: list[Record] = found.to_list()
        return rows
    except Exception as error:  # as above
        raise WeightopsError(f"{data.hub}: `datasets` cannot load it ({_said(error)})") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise WeightopsError("datasets: not installed; pip install 'weightops[train]'") from error
    datasets.disable_progress_bars()
    return datasets


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
