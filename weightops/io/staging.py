"""The output while it is being made: a hidden folder beside its place, renamed into place when it is whole.

A run that is killed leaves the folder and its journal; the same command resumes there and ends in the same bytes. What
the journal calls done has reached the disk. Two processes cannot write one output: the folder is locked.
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

from ..errors import Message, Remedy, WeightopsError
from .output_lock import OutputLock, open_private, remove
from .replacing import check_place, put_in_place, recover, sync_folder

_FLUSH_SECONDS = 2.0
_JOURNAL, _IDENTITY = "journal.jsonl", "plan.json"


class Staging:
    """The staged output folder; a context manager.

    Leaving it by an error that a repeated run would meet again (a :class:`WeightopsError`) removes the folder;
    anything else (an interrupt, a full disk) keeps it for the run that resumes.

    Args:
        lock: The output's lock, where the caller holds it already; otherwise it is taken here.
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
        if isinstance(error, WeightopsError):
            self._close_files()
            self._lock.sweep()
        elif kind is not None:
            try:
                self.flush()
            except OSError:  # a disk that is full: what the journal holds already is still true
                self._pending.clear()
        self._close_files()
        self._release()

    @property
    def model(self) -> Path:
        """Where the files of the output stand until it is whole."""
        return self.folder / "model"

    def done(self) -> list[dict[str, Any]]:
        """The journal of the run that is resumed; empty on a first run."""
        records = []
        try:
            lines = self._read(_JOURNAL).splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:  # the line that a kill cut short
                break
        if len(records) < len(lines):
            text = "".join(f"{line}\n" for line in lines[: len(records)])
            self._write(_JOURNAL, text)
        return records

    def allocate(self, name: str, head: bytes, size: int) -> int:
        """A file of its final size with its head in place; returns its descriptor.

        Raises:
            WeightopsError: the disk has no room.
        """
        descriptor = open_private(self.model / name, os.O_RDWR | os.O_CREAT)
        self._files[name] = descriptor
        self._names.add(name)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise WeightopsError(
                    f"{self.model / name}: no room for {size} bytes ({error.strerror}); free some space"
                ) from error
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, head, 0)
        return descriptor

    def record(self, entry: Mapping[str, Any]) -> None:
        """Note a finished slice; it counts as done once its data and the note are on disk."""
        self._pending.append(json.dumps(entry, separators=(",", ":")))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring data, then notes, to the disk."""
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
        """A small file of the output."""
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._names.add(name)
        with open(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def commit(self) -> None:
        """Put the whole output in its place. After a crash there is either the old output or the new one."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
        self._close_files()
        self._drop_strange()
        sync_folder(self.model)
        put_in_place(self.model, self.out, self.folder / "displaced", overwrite=self._overwrite)
        self._lock.sweep()

    def _release(self) -> None:
        if not self._lock_is_given:
            self._lock.__exit__()

    def _adopt(self) -> None:
        """Take over what an earlier run left, if it was a run of the same plan on the same inputs."""
        recover(self.out, self.folder / "displaced")
        left = self._left()
        try:
            check_place(self.out, overwrite=self._overwrite)
        except WeightopsError:
            if left is None:
                self._lock.sweep()
            raise
        if left == self._identity:
            return
        if left is not None and not self._overwrite:
            raise WeightopsError(_cannot_resume(self.out, left, self._identity))
        self._start_over()

    def _left(self) -> dict[str, Any] | None:
        """The identity of the run that was left unfinished; without its files it was put in place, and left nothing."""
        if not self.model.exists():
            return None
        try:
            left = json.loads(self._read(_IDENTITY))
        except (FileNotFoundError, ValueError):
            return None
        return left if isinstance(left, dict) else None

    def _start_over(self) -> None:
        """An empty model folder under this run's name, whatever was there; killed on the way, it is done again."""
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

    def _drop_strange(self) -> None:
        """Remove from the folder to come what this run did not write: a file that was put there since a kill."""
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
    """What stands in the way of writing ``size`` bytes to ``out``: it exists, holds an input, or the disk is too small.

    Args:
        inputs: Files and folders that are read.
    """
    problems: list[str] = []
    place = out.resolve()
    for source in sorted({path.resolve() for path in inputs}):
        folder = source if source.is_dir() else source.parent
        if place == folder or (place.is_relative_to(folder) and source.is_dir()) or source.is_relative_to(place):
            what = f"{out}: the output would lie in or over the input {source}"
            problems.append(Message(what, Remedy("choose another {}", "out")))
    if not problems:
        try:
            check_place(out, overwrite=overwrite)
        except WeightopsError as error:
            problems += error.problems
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    staged = place.parent / f".{place.name}.weightops" / "model"
    free = shutil.disk_usage(parent).free + sum(f.stat().st_blocks * 512 for f in staged.glob("*.safetensors"))
    if free < size:
        what = f"{out}: needs {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
        problems.append(Message(what, Remedy("free some space"), Remedy("choose another {}", "out")))
    return problems


def _cannot_resume(out: Path, left: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, after = left.get("inputs", {}), now["inputs"]
    changed = sorted(path for path in after if path in before and before[path] != after[path])
    why = f"its input {changed[0]} has changed since" if changed else "it was another recipe or other sources"
    what = f"{out}: an unfinished run is there and cannot be resumed, {why}"
    return Message(what, Remedy("discard it and start over with {}", "overwrite", True))
