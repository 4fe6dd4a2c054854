"""What lies in the cache of converted models: listed with its source, and cleared. See :mod:`.cache`.

Only real folders in the cache's own folders of kinds are entries: links are neither followed nor removed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..errors import WeightopsError
from .cache import cache_folder, if_free, record_of

#: Sorts of entries: what GGUF files and what ``.bin`` files are converted to.
KINDS: Final = ("gguf", "pickled")
_BUILDING: Final = ".building"

State = Literal["valid", "stale", "unknown", "unfinished", "in use"]


@dataclass(frozen=True)
class CacheEntry:
    """A converted model, or what is left of a conversion that was killed.

    Attributes:
        name: Kind and name: ``gguf/smollm2-135m-instruct-0123456789abcdef``.
        folder: Where it lies.
        sources: The files it was made from; none where that was not noted.
        size: Bytes of its files.
        age: Seconds since it was finished.
        state: ``valid`` while its sources are as they were; ``stale`` when one is gone or has changed, so that it
            is not used again; ``unknown`` where its sources were not noted; ``unfinished`` for what a killed
            conversion left; ``in use`` while it is being made.
    """

    name: str
    folder: Path
    sources: tuple[Path, ...]
    size: int
    age: float
    state: State


def entries() -> list[CacheEntry]:
    """Everything in the cache, by name."""
    return sorted(_entries(), key=lambda entry: entry.name)


def _entries() -> Iterator[CacheEntry]:
    for kind in KINDS:
        home = cache_folder() / kind
        if not _is_real_folder(home):
            continue
        for folder in home.iterdir():
            unfinished = folder.name.startswith(".") and folder.name.endswith(_BUILDING)
            if _is_real_folder(folder) and (unfinished or not folder.name.startswith(".")):
                yield _entry(kind, folder, unfinished=unfinished)


def _entry(kind: str, folder: Path, *, unfinished: bool) -> CacheEntry:
    name = folder.name.removesuffix(_BUILDING).removeprefix(".") if unfinished else folder.name
    sources, unchanged = _sources(folder)
    state: State = "unknown" if not sources else "valid" if unchanged else "stale"
    if unfinished:
        with if_free(folder.with_name(name)) as free:
            state = "unfinished" if free else "in use"
    with suppress(OSError):
        age = max(0.0, time.time() - folder.stat().st_mtime)
        return CacheEntry(f"{kind}/{name}", folder, sources, _size(folder), age, state)
    return CacheEntry(f"{kind}/{name}", folder, sources, 0, 0.0, state)  # it went away meanwhile


def _sources(folder: Path) -> tuple[tuple[Path, ...], bool]:
    """The files that an entry was made from, and whether all of them are as they were."""
    try:
        noted = json.loads(record_of(folder).read_text("utf-8"))
        files = [(Path(path), (int(size), int(changed))) for path, size, changed in noted]
    except (OSError, ValueError, TypeError, RecursionError):
        return (), False
    return tuple(path for path, _ in files), all(_stamp(path) == known for path, known in files)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def clear(chosen: Iterable[CacheEntry]) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove entries; one that is being made at the moment is left.

    Returns:
        What was removed, and what was left because it is in use.

    Raises:
        WeightopsError: an entry does not lie in the cache, or cannot be removed.
    """
    removed: list[CacheEntry] = []
    busy: list[CacheEntry] = []
    for entry in chosen:
        final = cache_folder() / entry.name
        if final.parent.parent != cache_folder() or final.parent.name not in KINDS or not _is_real_folder(final.parent):
            raise WeightopsError(f"{entry.folder}: not in the cache {cache_folder()}; nothing was removed")
        with if_free(final) as free:
            if free:
                _remove(entry.folder, record_of(final))
        (removed if free else busy).append(entry)
    return removed, busy


def _remove(folder: Path, record: Path) -> None:
    """Take a folder out of sight by its name first, so that nothing opens half of it."""
    leaving = folder.with_name(f".{folder.name.removeprefix('.').removesuffix(_BUILDING)}{_BUILDING}")
    try:
        if _is_real_folder(folder):
            if leaving != folder:
                if _is_real_folder(leaving):
                    shutil.rmtree(leaving)
                folder.rename(leaving)
            shutil.rmtree(leaving)
        record.unlink(missing_ok=True)
    except OSError as error:
        where = error.filename or folder
        raise WeightopsError(f"{where}: cannot be removed ({error.strerror}); check its permissions") from error


def find_entries(names: Iterable[str]) -> list[CacheEntry]:
    """Entries by name, whole (``gguf/NAME``) or without the kind.

    Raises:
        WeightopsError: every name that no entry has.
    """
    known = entries()
    chosen: dict[Path, CacheEntry] = {}
    missing = []
    for name in names:
        matching = [entry for entry in known if name in (entry.name, entry.name.partition("/")[2])]
        chosen |= {entry.folder: entry for entry in matching}
        if not matching:
            missing.append(f"{name}: no such entry in the cache; `weightops cache` lists them")
    if missing:
        raise WeightopsError(*missing)
    return list(chosen.values())


def _is_real_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, links not followed."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(home, name)).st_size
    return total
