"""A writer that replies by a function, so that a test knows every answer; it counts what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightops.recipes.writing.answer_journal import AnswerJournal
from weightops.recipes.writing.asks import AskRefusedError, DataPass, Rate, Record, Write, Written, asked
from weightops.recipes.writing.pass_run import PassCounts, PassRun
from weightops.rows.row import Row


@dataclass(frozen=True)
class ScriptedWriter:
    """Replies to a prompt's last words, and the number of the sample, with a text; rates a text by its length."""

    reply: Callable[[str, int], str | Written | AskRefusedError]
    asks: list[Any] = field(default_factory=list, hash=False, compare=False)
    temperature: float = 0.0
    top_p: float = 1.0
    batch: int = 4
    identity: str = "scripted"

    @contextmanager
    def opened(self, base: str | None) -> Iterator[ScriptedWriter]:
        yield self

    def write(self, asks: Sequence[Write], keys: Sequence[str]) -> list[Any]:
        self.asks.extend(asks)
        return [self._reply(ask) for ask in asks]

    def rate(self, asks: Sequence[Rate]) -> list[Any]:
        self.asks.extend(asks)
        return [-float(len(ask.answer)) for ask in asks]

    def _reply(self, ask: Write) -> Any:
        replies = [self.reply(asked(ask.prompt), sample) for sample in range(ask.samples)]
        refused = next((each for each in replies if isinstance(each, AskRefusedError)), None)
        return refused or tuple(Written(each, True) if isinstance(each, str) else each for each in replies)


def run_pass(rewriting: DataPass, records: Sequence[Record], folder: Path) -> tuple[list[Record], PassCounts]:
    """What a pass makes of records, and its counts; the journal lies in the folder."""
    rows = [Row.of(f"row {number}", record) for number, record in enumerate(records, 1)]
    assert [list(rewriting.problems(row)) for row in rows] == [[]] * len(rows)
    with AnswerJournal(folder / "answers.jsonl") as journal, PassRun(rewriting, journal) as run:
        return list(run.records(rows)), run.counts
