"""Runs the guard in one thread for all clients: all waiting texts are judged in one forward pass."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ...errors import WeightopsError
from ..judge import Guard
from ..streaming.stream import Crossing, Stream, Streams


class BusyError(Exception):
    """The server has too much waiting work."""


@dataclass(frozen=True)
class Verdict:
    """The guard's judgement of a text so far."""

    probability: float
    characters: int
    tokens: int
    flagged: bool
    crossed_at: Crossing | None


@dataclass(eq=False)
class Session:
    """A text that a client sends; only the guard's thread creates and uses its stream."""

    stream: Stream | None = None


@dataclass(eq=False)
class _Job:
    session: Session
    chunk: str | bytes
    last: bool
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Verdict]

    def done(self, result: Verdict | Exception) -> None:
        """Give the answer to the waiting caller, if it still waits."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result)
        except RuntimeError:  # the server has stopped
            return

    def _settle(self, result: Verdict | Exception) -> None:
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


@dataclass
class WorkCounts:
    """Counts of the work of the guard's thread."""

    passes: int = 0
    chunks: int = 0
    seconds: float = 0.0


class Batcher:
    """Judges the clients' texts in batches.

    Attributes:
        waiting: How many chunks wait or are being judged.
        tally: Counts of the work done so far.
    """

    def __init__(self, guard: Guard, batch: int = 16, most_waiting: int = 256, kept_bytes: int = 2 << 30) -> None:
        """Start the thread.

        Args:
            guard: The guard; nothing else may use it meanwhile.
            batch: Most chunks in one forward pass.
            most_waiting: Most chunks that may wait; further ones are refused.
            kept_bytes: Most memory kept for open texts; beyond it, the next chunk is refused and its text dropped.
        """
        self.guard, self.tally, self.waiting = guard, WorkCounts(), 0
        self._batch, self._most, self._kept_bytes = batch, most_waiting, kept_bytes
        self._open: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._streams = Streams(guard, batch=batch)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    @property
    def kept(self) -> int:
        """Bytes kept for open texts."""
        with self._lock:
            return sum(stream.kept_bytes for stream in self._open)

    def stop(self) -> None:
        """End the thread after its current work."""
        self._queue.put(None)
        self._thread.join(10)

    async def judge(self, session: Session, chunk: str | bytes, last: bool = False) -> Verdict:
        """Add a chunk to a session's text and judge it. One chunk of a session at a time.

        Args:
            session: The text so far.
            chunk: The new part of the text.
            last: Whether this chunk ends the text.

        Raises:
            BusyError: too many chunks are waiting.
            WeightopsError: the text is longer than the model reads.
        """
        if self.waiting >= self._most:
            raise BusyError(f"{self.waiting} texts are waiting to be judged; try again in a moment")
        loop = asyncio.get_running_loop()
        job = _Job(session, chunk, last, loop, loop.create_future())
        self.waiting += 1
        job.answer.add_done_callback(self._one_less)
        self._queue.put(job)
        return await job.answer

    def _one_less(self, _: object) -> None:
        self.waiting -= 1

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs = [first]
            while len(jobs) < self._batch and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._answer(jobs)
                    return
                jobs.append(more)
            self._answer([job for job in jobs if not job.answer.done()])

    def _answer(self, jobs: Iterable[_Job]) -> None:
        jobs = list(jobs)
        if not jobs:
            return
        start = time.perf_counter()
        try:
            self._feed(jobs)
        except Exception as error:  # the thread must survive a failed pass
            for job in jobs:
                job.done(error)
        finally:
            self.tally.passes += 1
            self.tally.chunks += len(jobs)
            self.tally.seconds += time.perf_counter() - start

    def _feed(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if self._room_for(job)]
        news: dict[Stream, str | bytes] = {}
        for job in jobs:
            news[self._stream_of(job.session)] = job.chunk
        with suppress(WeightopsError):  # each stream keeps its own problem
            self._streams.feed(news)
        for job in jobs:
            stream = job.session.stream
            assert stream is not None
            if stream.problem is not None:
                job.done(stream.problem)
                continue
            if job.last:
                stream.close()
            job.done(_verdict(stream))

    def _stream_of(self, session: Session) -> Stream:
        if session.stream is None:
            session.stream = self._streams.open()
            with self._lock:
                self._open.add(session.stream)
        return session.stream

    def _room_for(self, job: _Job) -> bool:
        """Whether there is memory for the job; if not, it is refused and its text dropped."""
        kept = self.kept
        if kept <= self._kept_bytes:
            return True
        if job.session.stream is not None:
            with self._lock:
                self._open.discard(job.session.stream)
            job.session.stream = None
        job.done(BusyError(f"open texts use {kept} bytes, which is the limit; try again in a moment"))
        return False


def _verdict(stream: Stream) -> Verdict:
    assert stream.probability is not None
    return Verdict(stream.probability, stream.characters, stream.tokens, stream.flagged, stream.crossed_at)


@dataclass
class Counts:
    """Counts of requests and answers, for the metrics page."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    texts: int = 0
    flagged: int = 0
    characters: int = 0
    streams: int = 0
    connections: int = 0

    def request(self, path: str, status: int) -> None:
        """Count an answered request."""
        self.requests[path, status] = self.requests.get((path, status), 0) + 1

    def text(self, verdict: Verdict) -> None:
        """Count a text that was judged to its end."""
        self.texts += 1
        self.flagged += verdict.flagged
        self.characters += verdict.characters

    def page(self, batcher: Batcher) -> str:
        """All counts in Prometheus' text format."""
        lines = [
            "# HELP weightops_requests_total Answers; path none: refused before there was a valid request.",
            "# TYPE weightops_requests_total counter",
        ]
        lines += [
            f'weightops_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        tally = batcher.tally
        for name, kind, text, value in (
            ("texts_total", "counter", "Texts judged to their end.", self.texts),
            ("texts_flagged_total", "counter", "Texts that were unsafe at some point.", self.flagged),
            ("characters_total", "counter", "Characters of the texts judged to their end.", self.characters),
            ("streams_open", "gauge", "Texts that are arriving.", self.streams),
            ("connections_open", "gauge", "Connections of clients.", self.connections),
            ("kept_bytes", "gauge", "Memory kept for texts that are arriving.", batcher.kept),
            ("chunks_waiting", "gauge", "Chunks that wait or are being judged.", batcher.waiting),
            ("chunks_judged_total", "counter", "Chunks judged.", tally.chunks),
            ("passes_total", "counter", "Rounds of judging; chunks per round is the batching.", tally.passes),
            ("judging_seconds_total", "counter", "Seconds spent judging.", round(tally.seconds, 6)),
        ):
            lines += [f"# HELP weightops_{name} {text}", f"# TYPE weightops_{name} {kind}", f"weightops_{name} {value}"]
        return "\n".join(lines) + "\n"
