"""The user's cache. Each entry is a folder that is built once and appears only when it is complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WeightopsError


def cache_folder() -> Path:
    """``$WEIGHTOPS_CACHE``, else ``$XDG_CACHE_HOME/weightops``, else ``~/.cache/weightops``. The folder is not created.

    A relative ``$XDG_CACHE_HOME`` is ignored, as the XDG specification asks.
    """
    chosen, shared = os.environ.get("WEIGHTOPS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if shared and Path(shared).is_absolute():
        return Path(shared) / "weightops"
    return Path.home() / ".cache" / "weightops"


def cached(kind: str, name: str, build: Callable[[Path], None], sources: Iterable[Path] = ()) -> Path:
    """The folder ``<cache>/<kind>/<name>``, made by ``build`` on first use.

    ``build`` fills an empty folder next to the final one. Then all files are flushed to disk and the folder is renamed,
    so a folder with the final name is always complete. A lock makes a second process wait; the system releases the
    lock when its process dies. The next build removes the remains of a killed one.

    Args:
        kind: The kind of entry: ``gguf``, ``pickled``.
        name: Name of the entry: readable, with the :func:`stamp` of everything that decides its content.
        build: Function that fills the given folder.
        sources: The files that the entry is made from, noted beside it, to tell later whether they have changed.

    Raises:
        WeightopsError: the cache cannot be written. Errors of ``build`` pass through.
    """
    final = cache_folder() / kind / name
    if final.is_dir():
        return final
    with _locked(final):
        if not final.is_dir():
            _make(final, build, [_noted(file) for file in sources])
    return final


def record_of(entry: Path) -> Path:
    """Where the sources of an entry are noted: a JSON list of path, size and time of change (ns) of each."""
    return entry.with_name(f".{entry.name}.sources")


def _noted(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


@contextmanager
def if_free(final: Path) -> Iterator[bool]:
    """Hold an entry's lock where nobody else does; gives whether it is held. Nobody is waited for.

    Raises:
        WeightopsError: the cache cannot be written.
    """
    try:
        lock = os.open(final.with_name(f".{final.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(lock)


def entry_name(name: str, stamp: str) -> str:
    """A readable file name for an entry: the plain characters of the name, and the first 16 digits of the stamp.

    >>> entry_name("my model.Q4", "0123456789abcdef0123")
    'my-model.Q4-0123456789abcdef'
    """
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')[:80] or 'model'}-{stamp[:16]}"


def stamp(files: Iterable[Path], version: int) -> str:
    """SHA-256 of each file's real path, size and modification time (ns), and of the conversion's version.

    The content is not read, so a cached 100 GB file opens at once; a copied or touched file is converted again (ours).
    """
    digest = hashlib.sha256(str(version).encode())
    for file in files:
        status = file.stat()
        digest.update(f"\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _make(final: Path, build: Callable[[Path], None], sources: list[tuple[str, int, int]]) -> None:
    building = final.with_name(f".{final.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        build(building)
        _flush(building)
        record_of(final).write_text(json.dumps(sources), "utf-8", "surrogateescape")
        building.rename(final)
        _sync(final.parent)
    except OSError as error:
        raise _unwritable(final, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(final.with_name(f".{final.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _unwritable(final: Path, error: OSError) -> WeightopsError:
    where, reason = error.filename or final, error.strerror or error
    return WeightopsError(
        f"{where}: {reason}; set the environment variable WEIGHTOPS_CACHE to a folder with free space"
    )


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
