"""Measuring: a process's time and memory, repeated and interleaved; the machine it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

_SAMPLE_SECONDS = 0.01
_IDLE = 0.2  # cores


@dataclass(frozen=True)
class Run:
    """One run of a process.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of processor time, user and system.
        anonymous: Peak of anonymous resident memory (RssAnon), bytes, seen at intervals of 10 ms.
        resident: Peak resident memory (``ru_maxrss``), bytes: the page cache that is mapped counts here.
        output: What it printed.
    """

    wall: float
    cpu: float
    anonymous: int = 0
    resident: int = 0
    output: str = ""


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of repeated measurements."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))


class Sampler(threading.Thread):
    """Follows a process's anonymous memory until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._status = f"/proc/{pid}/status"
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, _anonymous(self._status))

    def stop(self) -> int:
        """Stop; returns the peak in bytes."""
        self._over.set()
        self.join()
        return self.peak


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, sample: bool = True) -> Run:
    """Run a command to its end.

    Args:
        env: Variables to add to the environment.
        sample: Follow its memory.

    Raises:
        RuntimeError: it failed; the message holds what it wrote to stderr.
    """
    words = [str(word) for word in command]
    begin = time.perf_counter()
    with TemporaryFile() as output, TemporaryFile() as errors:
        process = subprocess.Popen(words, stdout=output, stderr=errors, env={**os.environ, **(env or {})})
        sampler = Sampler(process.pid) if sample else None
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = sampler.stop() if sampler else 0
        printed, complaints = (_text(stream) for stream in (output, errors))
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}\nexit code {process.returncode}\n{complaints}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, usage.ru_maxrss * 1024, printed)


def interleaved(steps: Mapping[str, Callable[[], Run]], repeats: int) -> dict[str, list[Run]]:
    """Every step once, then every step again: a neighbour's load falls on all of them alike."""
    runs: dict[str, list[Run]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            runs[name].append(step())
    return runs


def ratios(runs: Sequence[Run], limits: Sequence[Run]) -> Spread:
    """Wall by wall, each repeat against the limit of the same repeat."""
    return Spread.of([mine.wall / limit.wall for mine, limit in zip(runs, limits, strict=True)])


def conditions(repeats: int, *packages: str, load: str = "") -> tuple[str, ...]:
    """What the figures hold for, a line each: machine and load, date, versions, repeats.

    Args:
        load: What to say of the load, if not the load average.
    """
    load = load or f"load average {os.getloadavg()[0]:.1f} at the end of the run"
    count = "1 repeat" if repeats == 1 else f"{repeats} repeats"
    return (f"{machine()}; {load}", f"{date.today()}, {versions(*packages)}", f"{count}, interleaved")


def under_load(seconds: float = 1.0) -> str:
    """Whether other processes compute just now, in words; the load average would count those of minutes ago."""
    before = _processor_seconds()
    time.sleep(seconds)
    busy = (_processor_seconds() - before) / seconds
    return "no other load" if busy < _IDLE else f"**under other load** ({busy:.1f} cores busy before the run)"


def _processor_seconds() -> float:
    """Seconds of processor time that all processes have used since the machine started."""
    user, nice, system = map(int, _first_line("/proc/stat", "cpu ").split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Processor, cores and memory, in words."""
    cpu = _first_line("/proc/cpuinfo", "model name").split(":")[-1].strip() or platform.processor()
    kib = int(_first_line("/proc/meminfo", "MemTotal").split()[1])
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {kib / (1 << 20):.0f} GiB of memory, {platform.system()}"


def versions(*packages: str) -> str:
    """Python's and the packages' versions, in words."""
    lines = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return ", ".join(lines)


def _first_line(file: str, begins: str) -> str:
    lines = Path(file).read_text("utf-8").splitlines()
    return next((line for line in lines if line.startswith(begins)), ":")


def _anonymous(status: str) -> int:
    """RssAnon in bytes; 0 where the process has no memory any more."""
    try:
        line = _first_line(status, "RssAnon")
    except OSError:
        return 0
    return int(line.split()[1]) * 1024 if " " in line else 0


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
