"""Progress on stderr: a bar with the time left on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

#: Seconds between two lines if stderr is not a terminal; shorter work prints no line.
LINE_SECONDS = 30.0

Item = TypeVar("Item")

_SHOWN = ContextVar("shown", default=True)


@contextmanager
def no_progress() -> Iterator[None]:
    """Print no progress for the length of the block."""
    before = _SHOWN.set(False)
    try:
        yield
    finally:
        _SHOWN.reset(before)


def progress_is_shown() -> bool:
    """Whether progress is printed here; not inside :func:`no_progress`."""
    return _SHOWN.get()


class Progress:
    """How far a piece of work is. Use it in a ``with`` block, or call :meth:`close`.

    A log file gets whole lines without carriage returns: one every :data:`LINE_SECONDS`.

    Args:
        total: Units of work altogether.
        what: Name of the work, for example ``writing out``.
        unit: What one unit is called; ``B`` for bytes.
        begun: Units that an earlier run has finished.
        delay: Seconds before a bar appears, so that short work shows no bar.
        shown: Whether anything is printed.
    """

    def __init__(
        self, total: int, what: str, *, unit: str = "B", begun: int = 0, delay: float = 2.0, shown: bool = True
    ) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, begun
        self._begun, self._note = begun, ""
        self._stream: Any = sys.stderr if shown and progress_is_shown() else None
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if self._stream is not None and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=begun, desc=what, unit=unit, unit_scale=unit == "B", delay=delay, leave=False,
                file=self._stream,
            )  # fmt: skip

    def update(self, units: int = 1) -> None:
        """Report more finished units."""
        self.done += units
        if self._bar is not None:
            self._bar.update(units)
        elif self._stream is not None and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._stream.write(f"{self._line()}\n")
            self._stream.flush()

    def note(self, text: str) -> None:
        """Show a text next to the progress from now on, for example the loss."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def tell(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._stream is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        fraction = self.done / self.total if self.total else 1.0
        count = "" if self.unit == "B" else f", {self.unit} {self.done} of {self.total}"
        rate = (self.done - self._begun) / max(time.monotonic() - self._start, 1e-9)
        remaining = f", {clock((self.total - self.done) / rate)} left" if rate > 0 else ""
        return f"{self.what}: {fraction:.0%}{count}{remaining}" + (f" ({self._note})" if self._note else "")


def say(line: str) -> None:
    """Print a line on standard error without breaking a progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def followed(items: Sequence[Item], what: str, *, unit: str) -> Iterator[Item]:
    """The items, with progress shown while they are taken."""
    with Progress(len(items), what, unit=unit, delay=1) as progress:
        for item in items:
            yield item
            progress.update()


def clock(seconds: float) -> str:
    """A time as minutes and seconds, from an hour on with hours.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    hours, rest = divmod(round(max(seconds, 0)), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
