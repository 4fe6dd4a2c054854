"""The scores that are known: a file of JSON lines, one for each candidate, by the content of all that decides a score.

A line is added as soon as a score is known, so a run that was killed loses one at most. Scores of other models, data or
settings do no harm: their keys are others. So one folder may serve several runs, also at the same time: each locks the
file while it adds a line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import WeightopsError
from ..io.small_files import read_small, whole_lines

NAME = "scores.jsonl"
MOST_BYTES = 256_000_000


class ScoreJournal:
    """Scores by key, in memory and, where there is a folder, in a file of it."""

    def __init__(self, folder: Path | None) -> None:
        """Read what earlier runs have written, without a last line that is not complete.

        Raises:
            WeightopsError: the file cannot be read, or it is damaged.
        """
        self._file = None if folder is None else folder / NAME
        self._scores: dict[str, tuple[float, str | None]] = {}
        if self._file is None or not os.path.lexists(self._file):
            return
        try:
            content = read_small(self._file, MOST_BYTES)
        except OSError as error:
            raise WeightopsError(f"{self._file}: cannot be read ({error.strerror}); check its permissions") from error
        for number, line in enumerate(whole_lines(content), 1):
            self._read(line, number)

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: str) -> tuple[float, str | None] | None:
        """A score and, where it is NaN, the problem; ``None`` if it is not known."""
        return self._scores.get(key)

    def add(self, key: str, score: float, problem: str | None, label: str) -> None:
        """Note a score.

        Raises:
            WeightopsError: the file cannot be written.
        """
        self._scores[key] = (score, problem)
        if self._file is None:
            return
        entry = {"key": key, "score": None if math.isnan(score) else score, "problem": problem, "candidate": label}
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                _drop_incomplete_line(stream)
                stream.write(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise WeightopsError(f"{self._file}: cannot be written ({error.strerror}); check the folder") from error

    def _read(self, line: bytes, number: int) -> None:
        try:
            entry: Any = json.loads(line)
            score, problem = entry["score"], entry["problem"]
            if not isinstance(score, float | int | None) or not isinstance(problem, str | None):
                raise ValueError
            self._scores[str(entry["key"])] = (math.nan if score is None else float(score), problem)
        except (ValueError, KeyError, TypeError, RecursionError):
            place = f"{self._file}, line {number}"
            raise WeightopsError(f"{place}: not a score; remove the line, or the file to judge all again") from None


def _drop_incomplete_line(stream: BinaryIO) -> None:
    """Cut off what a run that was killed wrote last; no other run is writing, as this one holds the lock."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(end - 1, 0))
    if stream.read() not in (b"", b"\n"):
        stream.seek(0)
        stream.truncate(sum(map(len, whole_lines(stream.read(MOST_BYTES)))))
