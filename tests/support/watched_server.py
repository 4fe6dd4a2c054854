"""A worker of a Ray cluster that notes what it does, reads as slowly as it is told, and kills itself where it is told.

It looks for ``control.json`` beside the output: ``rate``, bytes a second that a worker reads, and ``kill``, the job and
block of a slice and how many workers die in it. What the workers did lies in ``notes-PID.jsonl`` there.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from weightops.engine.slice_server import SliceServer


class WatchedServer(SliceServer):
    """One worker."""

    def open(self) -> None:
        super().open()
        self._place = self._folder.parents[1]
        control = json.loads((self._place / "control.json").read_text())
        self._bytes_read, self._rate, self._kill = 0, control.get("rate"), control.get("kill")
        read = os.preadv

        def counted(descriptor: int, views: list[memoryview], offset: int) -> int:
            count = read(descriptor, views, offset)
            self._bytes_read += count
            if self._rate:
                time.sleep(count / self._rate)
            return count

        os.preadv = counted  # type: ignore[assignment]

    def compute(self, number: int, block: int, *rest: Any) -> Any:
        begin, before = time.monotonic(), self._bytes_read
        self._note({"begun": [number, block]})
        if self._kill and [number, block] == self._kill[:2] and len(deaths(self._place)) < self._kill[2]:
            os.pwrite = self._die_in_the_middle(os.pwrite)  # type: ignore[assignment]
        answer = super().compute(number, block, *rest)
        read = self._bytes_read - before
        times = [begin, time.monotonic()]
        self._note({"finished": [number, block], "fresh": answer[1], "read": read, "times": times})
        return answer

    def _die_in_the_middle(self, write: Any) -> Any:
        calls = iter(range(2))

        def dying(*arguments: Any) -> Any:
            if next(calls) == 1:  # the first half of the slice is written
                (self._place / f"death-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        return dying

    def _note(self, what: dict[str, Any]) -> None:
        with (self._place / f"notes-{os.getpid()}.jsonl").open("a") as notes:
            notes.write(json.dumps(what) + "\n")


def deaths(place: Path) -> list[Path]:
    """A file for each worker that has killed itself."""
    return sorted(place.glob("death-*"))


def notes(place: Path, kind: str) -> list[dict[str, Any]]:
    """What all workers noted: the lines that have the key ``begun`` or ``finished``."""
    lines = [json.loads(line) for file in place.glob("notes-*.jsonl") for line in file.read_text().splitlines()]
    return [line for line in lines if kind in line]
