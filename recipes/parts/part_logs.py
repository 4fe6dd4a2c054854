"""Logs of trainings in other processes: their progress shown here, and their last lines where one ends badly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from weightops.io.progress import Progress
from weightops.recipes.parts.part_training import PartTraining

LOG: Final = "log"
_END_BYTES, _END_LINES, _LINE_CHARACTERS = 8192, 3, 200


def log_of(training: PartTraining) -> Path:
    """The log of a training in another process."""
    return training.run_folder / LOG


class PartLogs:
    """Shows how far trainings are: a bar of all parts, and of each part the lines of its log that begin with its title.

    Use it in a ``with`` block.
    """

    def __init__(self, trainings: Sequence[PartTraining]) -> None:
        self._logs = {log_of(training): training.title for training in trainings}
        self._read = dict.fromkeys(self._logs, 0)
        self._progress = Progress(len(trainings), "training the parts", unit="trained")

    def __enter__(self) -> PartLogs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()

    def show(self) -> None:
        """Show what the logs have that is new."""
        for log, title in self._logs.items():
            for line in self._new_lines(log):
                if line.startswith(f"{title}:"):
                    self._progress.tell(line)

    def tell(self, line: str) -> None:
        """Show a line of our own."""
        self._progress.tell(line)

    def ended(self) -> None:
        """Count a part that has ended."""
        self.show()
        self._progress.update()

    def _new_lines(self, log: Path) -> Iterator[str]:
        """Whole lines that were not read before."""
        try:
            with log.open("rb") as stream:
                stream.seek(self._read[log])
                new = stream.read()
        except OSError:  # not begun yet
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read[log] += len(whole)
        yield from whole.decode("utf-8", "replace").splitlines()


def last_lines(log: Path) -> str:
    """The end of a log as one line; says so where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - _END_BYTES, 0))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return "no log"
    lines = [line.strip()[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_END_LINES:]) or "an empty log"
