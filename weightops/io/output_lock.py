"""One process for one output: the hidden folder beside it, where unfinished work is kept, and the lock in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import Message, Remedy, WeightopsError
from .replacing import private_folder

_LOCK = "lock"


class OutputLock:
    """The right to write one output; a context manager. A second process is refused, and touches nothing.

    Attributes:
        folder: The hidden folder. It goes away on leaving, unless there is something in it beside the lock.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.parent / f".{self.out.name}.weightops"

    def __enter__(self) -> OutputLock:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            private_folder(self.folder)
            self._descriptor = open_private(self.folder / _LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            what = f"{self.out}: cannot be written ({error.strerror})"
            raise WeightopsError(Message(what, Remedy("choose another {}", "out"))) from error
        if not self._taken():
            os.close(self._descriptor)
            what = f"{self.out}: another process is writing it"
            raise WeightopsError(Message(what, Remedy("wait for it"), Remedy("choose another {}", "out")))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the folder is not empty: work that can be resumed
            if os.listdir(self.folder) == [_LOCK]:
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()
        os.close(self._descriptor)

    def sweep(self) -> None:
        """Delete everything in the folder but the lock."""
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                with suppress(OSError):
                    remove(path)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the file that is there now, and not one that another process has deleted on leaving
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.folder / _LOCK))
        except OSError:
            return False


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def open_private(path: Path, flags: int) -> int:
    """A file in a hidden folder of ours, never through a link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WeightopsError(f"{path}: a link where weightops keeps its own file; run this again") from error
        raise
