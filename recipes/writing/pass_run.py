"""Runs a pass over rows: many rows under way at a time, so that their asks are answered in batches."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from weightops.engine.execute import default_threads
from weightops.io.progress import Progress
from weightops.recipes.floor.components import kind_of
from weightops.recipes.sandbox.sandbox import run_sandboxed
from weightops.recipes.writing.answer_journal import AnswerJournal, ask_key
from weightops.recipes.writing.asks import (
    Ask,
    AskRefusedError,
    DataPass,
    Note,
    OpenWriter,
    Record,
    RunProgram,
    Steps,
    Write,
    Writer,
)
from weightops.rows.row import Row

WINDOW = 64
"""Rows under way at a time: what is in memory, and the most that share a batch."""
STEP_SECONDS = 60.0
"""Seconds that a pass, or its judge, may compute between two requests. The time of the requests does not count."""


@dataclass
class PassCounts:
    """What a pass did, counted while it runs.

    Attributes:
        read: Rows that were read.
        made: Rows that were made of them.
        sources: Rows made, by what the pass calls their ``source``.
        notes: What the pass reported, and how often.
        remembered: Asks that the journal answered.
        answered: Asks that were answered anew.
    """

    read: int = 0
    made: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    remembered: int = 0
    answered: int = 0

    def lines(self) -> list[str]:
        """What to tell about the run, a line each."""
        sources = ", ".join(f"{count} {source}" for source, count in sorted(self.sources.items()))
        made = f"{self.made} rows made of {self.read}" + (f": {sources}" if sources else "")
        requests = f"{self.answered} requests answered, {self.remembered} answers reused from an earlier run or row"
        return [made, requests, *(f"{text} ({_often(count)})" for text, count in self.notes.most_common())]


@dataclass
class _Underway:
    """A row that the pass is working on: what it waits for, or what became of it."""

    row: Row
    steps: Steps
    ask: Ask | None = None
    records: Sequence[Record] | None = None


class PassRun(ExitStack):
    """A pass with its writers and its journal; use it in a ``with`` block.

    Args:
        rewriting: The pass.
        journal: Answers of this run and earlier ones, already open.
        base: Model of the recipe, for writers that name none.
    """

    def __init__(self, rewriting: DataPass, journal: AnswerJournal, base: str | None = None) -> None:
        super().__init__()
        self.rewriting, self.journal, self.base = rewriting, journal, base
        self.counts = PassCounts()
        self._writers: dict[Writer, OpenWriter] = {}

    def records(self, rows: Sequence[Row]) -> Iterator[Record]:
        """The rows that rows become, in their order.

        Each record says in ``from`` which row it was made of.

        Raises:
            WeightopsError: a writer cannot be opened, or fails.
        """
        waiting = iter(rows)
        window: list[_Underway] = []
        with Progress(len(rows), f"running {kind_of(self.rewriting)}", unit="row", delay=1) as progress:
            while True:
                while len(window) < WINDOW and (row := next(waiting, None)) is not None:
                    window.append(_Underway(row, self.rewriting.rewrite(row)))
                    self.counts.read += 1
                    self._advance(window[-1], None)
                if not window:
                    return
                self._answer([each for each in window if each.records is None])
                while window and window[0].records is not None:
                    done = window.pop(0)
                    progress.update()
                    yield from self._finished(done)

    def _finished(self, done: _Underway) -> Iterator[Record]:
        for record in done.records or ():
            self.counts.made += 1
            if isinstance(source := record.get("source"), str):
                self.counts.sources[source] += 1
            yield {**record, "from": done.row.place}

    def _answer(self, underway: Sequence[_Underway]) -> None:
        """One round: every row that waits gets its answer, and its pass runs up to the next ask."""
        asks: dict[Any, list[_Underway]] = {}
        for each in underway:
            asks.setdefault((type(each.ask), getattr(each.ask, "by", None)), []).append(each)
        for (kind, writer), group in asks.items():
            opened = self._opened(writer) if writer is not None else None
            keys = [ask_key(each.ask, opened.identity if opened else "") for each in group]  # type: ignore[arg-type]
            unknown: dict[str, Any] = {
                key: each.ask for key, each in zip(keys, group, strict=True) if self.journal.get(key) is None
            }
            self.counts.answered += len(unknown)
            self.counts.remembered += len(group) - len(unknown)
            self._note_answers(kind, opened, unknown)
            for key, each in zip(keys, group, strict=True):
                self._advance(each, self.journal.get(key))

    def _note_answers(self, kind: type, writer: OpenWriter | None, asks: dict[str, Any]) -> None:
        """Have asks answered, batch by batch, and note each answer at once."""
        if writer is None:
            with ThreadPoolExecutor(default_threads()) as pool:
                for key, ran in zip(asks, pool.map(_run, asks.values()), strict=True):
                    self.journal.add(key, ran)
            return
        # Asks of like length share a batch, so that little of it is padding.
        ordered = sorted(asks, key=lambda key: len(str(asks[key].prompt)))
        for start in range(0, len(ordered), writer.batch):
            keys = ordered[start : start + writer.batch]
            batch = [asks[key] for key in keys]
            answers = writer.write(batch, keys) if kind is Write else writer.rate(batch)
            for key, answer in zip(keys, answers, strict=True):
                self.journal.add(key, answer)

    def _advance(self, underway: _Underway, answer: Any) -> None:
        """Give a row its answer; notes on the way are counted. A judge that hangs is stopped."""
        try:
            refused = isinstance(answer, AskRefusedError)
            with stopped_after(STEP_SECONDS):
                ask = underway.steps.throw(answer) if refused else underway.steps.send(answer)
                while isinstance(ask, Note):
                    self.counts.notes[ask.text] += 1
                    ask = underway.steps.send(None)
            underway.ask = ask
        except StopIteration as stop:
            underway.records = stop.value
        except AskRefusedError as refused:
            self.counts.notes[f"left out: {refused}"] += 1
            underway.records = ()

    def _opened(self, writer: Writer) -> OpenWriter:
        if writer not in self._writers:
            self._writers[writer] = self.enter_context(writer.opened(self.base))
        return self._writers[writer]


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise :class:`AskRefusedError` in a block that takes longer: the one way out of a judge's own endless loop.

    Signals reach the main thread alone, so elsewhere a block may take as long as it likes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise AskRefusedError(f"it took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _often(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _run(ask: RunProgram) -> Any:
    return run_sandboxed(ask.program, seconds=ask.seconds, megabytes=ask.megabytes)
