"""The answers that are known: a file of JSON lines, one for each ask, by the content of all that decides the answer.

A line is added as soon as an answer is known, so a run that was killed loses at most one batch. Answers of other models
or settings do no harm, because their keys differ.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from blake3 import blake3

from weightops.errors import WeightopsError
from weightops.io.small_files import read_small, whole_lines
from weightops.recipes.floor.checking import plain
from weightops.recipes.sandbox.sandbox import Ran
from weightops.recipes.writing.asks import AskRefusedError, Rate, RunProgram, Write, Written

MOST_BYTES = 2**31

Answer = tuple[Written, ...] | AskRefusedError | float | Ran


def ask_key(ask: Write | Rate | RunProgram, identity: str) -> str:
    """A digest of all that decides an answer.

    Args:
        ask: What is asked.
        identity: Of the writer; empty for a program.
    """
    parts = {name: value for name, value in vars(ask).items() if name != "by"}
    text = json.dumps([type(ask).__name__, identity, parts], sort_keys=True, default=str)
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerJournal:
    """Answers by key, in memory and in a file; a context manager."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._answers: dict[str, Answer] = {}
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> AnswerJournal:
        """Read what an earlier run has written; a last line that was cut off by a kill is dropped.

        Raises:
            WeightopsError: the file cannot be read or written, or is damaged.
        """
        try:
            lines = whole_lines(read_small(self.file, MOST_BYTES)) if os.path.lexists(self.file) else []
            for number, line in enumerate(lines, 1):
                self._read(line, number)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.file, "ab")
            os.truncate(self.file, sum(map(len, lines)))
        except OSError as error:
            raise WeightopsError(
                f"{self.file}: cannot be read or written ({error.strerror}); check its permissions"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """An answer; ``None`` if it is not known."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Note an answer."""
        self._answers[key] = answer
        assert self._stream is not None
        line = json.dumps({"key": key, **_stored(answer)}, ensure_ascii=True) + "\n"
        self._stream.write(line.encode("ascii"))
        self._stream.flush()

    def _read(self, line: bytes, number: int) -> None:
        try:
            entry: Any = json.loads(line)
            self._answers[str(entry["key"])] = _restored(entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            place = f"{self.file}, line {number}"
            raise WeightopsError(f"{place}: not an answer; remove the line, or the file to ask again") from None


def _stored(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, tuple):
        return {"written": [[each.text, each.whole] for each in answer]}
    if isinstance(answer, AskRefusedError):
        return {"refused": str(answer)}
    return {"ran": plain(answer)} if isinstance(answer, Ran) else {"mean": answer}


def _restored(entry: dict[str, Any]) -> Answer:
    if "written" in entry:
        return tuple(Written(str(text), bool(whole)) for text, whole in entry["written"])
    if "refused" in entry:
        return AskRefusedError(str(entry["refused"]))
    return Ran(**entry["ran"]) if "ran" in entry else float(entry["mean"])
