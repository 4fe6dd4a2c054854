"""An output while it is being written: a hidden folder next to its final path, renamed when it is complete.

A killed run leaves the folder and its journal. The same command resumes from there and produces the same bytes. Slices
that the journal lists as done have reached the disk. The folder is locked, so two processes cannot write one output.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import Message, Remedy, ResumableError, WeightopsError
from .output_lock import OutputLock, open_private, remove
from .replacing import check_place, put_in_place, recover, sync_folder

_FLUSH_SECONDS = 2.0
_JOURNAL, _IDENTITY = "journal.jsonl", "plan.json"


class Staging:
    """The staged output folder; a context manager.

    An error that a second run would raise again (a :class:`WeightopsError`) removes the folder. Any other error (an
    interrupt, a full disk, a :class:`ResumableError`) keeps the folder, so that the next run can resume.

    Args:
        lock: The output's lock, if the caller already holds it; otherwise it is taken here.
    """

    def __init__(
        self, out: Path, identity: Mapping[str, Any], *, overwrite: bool = False, lock: OutputLock | None = None
    ) -> None:
        self._lock = lock or OutputLock(out)
        self._lock_is_given = lock is not None
        self.out, self.folder = self._lock.out, self._lock.folder
        self._identity = json.loads(json.dumps(identity))
        self._overwrite = overwrite
        self._files: dict[str, int] = {}
        self._names: set[str] = set()
        self._pending: list[str] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Staging:
        if not self._lock_is_given:
            self._lock.__enter__()
        try:
            self._adopt()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, WeightopsError) and not isinstance(error, ResumableError):
            self._close_files()
            self._lock.sweep()
        elif kind is not None:
            try:
                self.flush()
            except OSError:  # the disk is full: the lines already in the journal are still true
                self._pending.clear()
        self._close_files()
        self._release()

    @property
    def model(self) -> Path:
        """The folder of the output's files until the output is complete."""
        return self.folder / "model"

    def done(self) -> list[dict[str, Any]]:
        """The journal of the run to resume; empty for a first run."""
        records = []
        try:
            lines = self._read(_JOURNAL).splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:  # a kill cut this line short
                break
        if len(records) < len(lines):
            text = "".join(f"{line}\n" for line in lines[: len(records)])
            self._write(_JOURNAL, text)
        return records

    def allocate(self, name: str, head: bytes, size: int) -> int:
        """Create a file with its final size and its header; returns its descriptor.

        Raises:
            WeightopsError: the disk does not have enough space.
        """
        descriptor = open_private(self.model / name, os.O_RDWR | os.O_CREAT)
        self._files[name] = descriptor
        self._names.add(name)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise WeightopsError(
                    f"{self.model / name}: not enough space for {size} bytes ({error.strerror}); free some space"
                ) from error
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, head, 0)
        return descriptor

    def record(self, entry: Mapping[str, Any]) -> None:
        """Add a finished slice to the journal; it counts as done when its data and the entry are on disk."""
        self._pending.append(json.dumps(entry, separators=(",", ":")))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Flush the data, then the journal, to the disk."""
        if self._pending:
            for descriptor in self._files.values():
                os.fdatasync(descriptor)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with open(open_private(self.folder / _JOURNAL, flags), "a", encoding="utf-8") as journal:
                journal.write("\n".join(self._pending) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
            self._pending.clear()
        self._flushed = time.monotonic()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file of the output."""
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._names.add(name)
        with open(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def commit(self) -> None:
        """Put the complete output in place. After a crash, either the old output or the new one exists."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
        self._close_files()
        self._drop_unknown()
        sync_folder(self.model)
        put_in_place(self.model, self.out, self.folder / "displaced", overwrite=self._overwrite)
        self._lock.sweep()

    def _release(self) -> None:
        if not self._lock_is_given:
            self._lock.__exit__()

    def _adopt(self) -> None:
        """Resume an earlier run, if it had the same plan and the same inputs."""
        recover(self.out, self.folder / "displaced")
        earlier = self._earlier_identity()
        try:
            check_place(self.out, overwrite=self._overwrite)
        except WeightopsError:
            if earlier is None:
                self._lock.sweep()
            raise
        if earlier == self._identity:
            return
        if earlier is not None and not self._overwrite:
            raise WeightopsError(_cannot_resume(self.out, earlier, self._identity))
        self._start_over()

    def _earlier_identity(self) -> dict[str, Any] | None:
        """The identity of an unfinished run; ``None`` if there is none (a finished run has moved its files away)."""
        if not self.model.exists():
            return None
        try:
            identity = json.loads(self._read(_IDENTITY))
        except (FileNotFoundError, ValueError):
            return None
        return identity if isinstance(identity, dict) else None

    def _start_over(self) -> None:
        """Delete the earlier run and make an empty model folder for this one; safe to repeat after a kill."""
        (self.folder / _IDENTITY).unlink(missing_ok=True)
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        if self.model.exists():
            shutil.rmtree(self.model)
        self.model.mkdir()
        self._write(_IDENTITY, json.dumps(self._identity))

    def _read(self, name: str) -> str:
        with open(open_private(self.folder / name, os.O_RDONLY), encoding="utf-8") as stream:
            return stream.read()

    def _write(self, name: str, text: str) -> None:
        descriptor = open_private(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)

    def _drop_unknown(self) -> None:
        """Remove files that this run did not write: someone may have added a file after a kill."""
        keep = {self.model / name for name in self._names}
        keep |= {parent for path in keep for parent in path.parents}
        for path in sorted(self.model.rglob("*")):
            if path not in keep and os.path.lexists(path):
                remove(path)

    def _close_files(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def output_problems(out: Path, inputs: Iterable[Path], size: int, *, overwrite: bool) -> list[str]:
    """Problems with writing ``size`` bytes to ``out``: it exists, contains an input, or the disk is too small.

    Args:
        inputs: The files and folders of the sources.
    """
    problems: list[str] = []
    place = out.resolve()
    for source in sorted({path.resolve() for path in inputs}):
        folder = source if source.is_dir() else source.parent
        if place == folder or (place.is_relative_to(folder) and source.is_dir()) or source.is_relative_to(place):
            problem = f"{out}: the output would be inside the input {source}, or replace it"
            problems.append(Message(problem, Remedy("choose another {}", "out")))
    if not problems:
        try:
            check_place(out, overwrite=overwrite)
        except WeightopsError as error:
            problems += error.problems
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    staged = place.parent / f".{place.name}.weightops" / "model"
    free = shutil.disk_usage(parent).free + sum(f.stat().st_blocks * 512 for f in staged.glob("*.safetensors"))
    if free < size:
        problem = f"{out}: needs {size / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free"
        problems.append(Message(problem, Remedy("free some space"), Remedy("choose another {}", "out")))
    return problems


def _cannot_resume(out: Path, earlier: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    old_inputs, new_inputs = earlier.get("inputs", {}), current["inputs"]
    changed = sorted(path for path in new_inputs if path in old_inputs and old_inputs[path] != new_inputs[path])
    reason = f"its input {changed[0]} has changed since then" if changed else "its recipe or its sources were different"
    problem = f"{out}: an unfinished run exists and cannot be resumed: {reason}"
    return Message(problem, Remedy("discard it and start over with {}", "overwrite", True))
