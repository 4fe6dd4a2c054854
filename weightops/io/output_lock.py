"""One process for one output: the hidden folder beside it, where unfinished work is kept, and the lock in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Message, Remedy, WeightopsError
from .replacing import private_folder, put_in_place, recover, refusal

_LOCK = "lock"


class OutputLock:
    """The right to write one output; a context manager. A second process is refused and changes nothing.

    Args:
        out: The output.
        ending: Of the hidden folder's name, ``.OUT.ending``.

    Attributes:
        folder: The hidden folder. It is deleted on leaving, unless it holds more than the lock.
    """

    def __init__(self, out: Path, ending: str = "weightops") -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.parent / f".{self.out.name}.{ending}"

    def __enter__(self) -> OutputLock:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            private_folder(self.folder)
            self._descriptor = open_private(self.file, os.O_RDWR | os.O_CREAT)
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
                self.file.unlink()
                self.folder.rmdir()
        os.close(self._descriptor)

    @property
    def file(self) -> Path:
        """The file that is locked; it may be there although no process holds it."""
        return self.folder / _LOCK

    def sweep(self) -> None:
        """Delete everything in the folder but the lock."""
        for path in self.folder.iterdir():
            if path != self.file:
                with suppress(OSError):
                    remove(path)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the file that is there now, and not one that another process has deleted on leaving
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.file))
        except OSError:
            return False


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


@contextmanager
def new_output(
    out: Path, name: str, *, overwrite: bool, why_not: Callable[[Path], str | None] = refusal
) -> Iterator[Path]:
    """A path to write an output to, which takes the output's place when the block ends well; else nothing is left.

    Args:
        out: The output.
        name: Of the path, in the hidden folder beside the output. Nothing is there yet.
        overwrite: Whether to replace what is there.
        why_not: See :func:`.replacing.check_place`.

    Raises:
        WeightopsError: another process writes the output, or it exists and is not replaced.
    """
    with OutputLock(out) as lock:
        aside = lock.folder / "displaced"
        recover(lock.out, aside)
        lock.sweep()
        try:
            yield lock.folder / name
            put_in_place(lock.folder / name, lock.out, aside, overwrite=overwrite, why_not=why_not)
        finally:
            lock.sweep()


def open_private(path: Path, flags: int) -> int:
    """A file in a hidden folder of ours, never through a link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WeightopsError(
                f"{path}: is a link, but weightops needs a file of its own there; rerun to replace it"
            ) from error
        raise
