"""Replacing an output: what may be taken away, and the renames that put the new folder in its place.

Only what weightops or transformers wrote is replaced, and only once the new folder is whole. A folder in which anything
else lies is left alone, whatever the user asked for.
"""

from __future__ import annotations

import os
import shutil
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ..errors import WeightopsError, short
from .folder import read_json
from .tokenizer import FILES as TOKENIZER_FILES

RECORD: Final = "weightops.json"
TRAINING: Final = "training.json"

_WEIGHTS: Final = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.safetensors", "adapter_model.bin")
#: Files that weightops, transformers, PEFT or mergekit write into a model's folder, as patterns.
_KNOWN: Final = (
    *(RECORD, TRAINING, "guard.json", "README.md", "LICENSE*", "NOTICE*", "training_args.bin", "trainer_state.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "*processor_config.json", "*.index.json"),
    *("modeling_*.py", "configuration_*.py", "tokenization_*.py", "*processing_*.py"),
    *("mergekit_config.yml", "mergekit_moe_config.yml"),
    *(*_WEIGHTS, *TOKENIZER_FILES),
)
_FOLDERS: Final = ("additional_chat_templates",)


def refusal(out: Path) -> str | None:
    """Why what lies at a path may not be replaced, as a problem line; ``None`` where it may, or nothing is there.

    An empty folder may be replaced, and a folder that holds a ``weightops.json``, a ``training.json``, or weights with
    their configuration, and besides that nothing but files known to a model's folder or listed in its record.
    """
    reason = _reason(out) if os.path.lexists(out) else None
    return reason and f"{out}: is not replaced, because {reason}; move it away yourself, or choose another output"


def _reason(out: Path) -> str | None:
    if out.is_symlink():
        return "it is a link"
    if not out.is_dir():
        return "it is not a folder that weightops or transformers wrote"
    place, here = out.resolve(), Path.cwd()
    if here.is_relative_to(place):
        return "the current folder lies in it" if here != place else "it is the current folder"
    if os.path.ismount(out):
        return "it is a mount point"
    try:
        entries = _entries(out)
        strange = _strange(out, entries)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        return f"it holds what does not belong to a model: {', '.join(strange[:3])}{more}"
    if entries and not _is_output(set(entries)):
        return "it holds no weights with their configuration"
    return None


def _entries(out: Path) -> dict[str, os.DirEntry[str]]:
    """What lies in a folder, and in the folders that a model's folder may have, by relative name."""
    entries: dict[str, os.DirEntry[str]] = {}
    with os.scandir(out) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and entry.name in _FOLDERS:
                with os.scandir(entry) as inner:
                    entries |= {f"{entry.name}/{each.name}": each for each in sorted(inner, key=lambda each: each.name)}
            else:
                entries[entry.name] = entry
    return entries


def _strange(out: Path, entries: dict[str, os.DirEntry[str]]) -> list[str]:
    """The names, shortened for a message, of what neither we nor transformers wrote."""
    recorded = _recorded(out) if RECORD in entries else frozenset()
    strange = []
    for name, entry in entries.items():
        known = name in recorded or any(fnmatchcase(name, pattern) for pattern in _KNOWN)
        if not (known and entry.is_file(follow_symlinks=False)):
            strange.append(short(name) + "/" * entry.is_dir(follow_symlinks=False))
    return strange


def _recorded(out: Path) -> frozenset[str]:
    """The small files that the record of an output lists."""
    try:
        names = read_json(out / RECORD).get("files")
    except WeightopsError:
        return frozenset()
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _is_output(names: set[str]) -> bool:
    if names & {RECORD, TRAINING}:
        return True
    weights = any(fnmatchcase(name, pattern) for name in names for pattern in _WEIGHTS)
    return weights and bool(names & {"config.json", "adapter_config.json"})


def exists_already(out: Path) -> str:
    """The problem line for an output that is there."""
    return f"{out}: exists already; choose another --out, or give --overwrite to replace it"


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a place for an output where something lies that is not to be replaced, or may not be.

    Raises:
        WeightopsError: with the reason.
    """
    if not os.path.lexists(out):
        return
    problem = refusal(out) if overwrite else exists_already(out)
    if problem:
        raise WeightopsError(problem)


def put_in_place(new: Path, out: Path, aside: Path, *, overwrite: bool) -> None:
    """Rename what lies at ``out`` aside, and the new folder to ``out``; after a crash the one or the other is there.

    What was renamed aside is the caller's to delete.

    Raises:
        WeightopsError: something lies there that is not to be replaced, or may not be.
    """
    check_place(out, overwrite=overwrite)
    if os.path.lexists(out):
        out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        if os.path.lexists(aside):
            aside.rename(out)
        raise
    sync_folder(out.parent)


def recover(out: Path, aside: Path) -> None:
    """After a kill: put an old output back that has no successor yet, or delete one that has."""
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(out):
        aside.rename(out)
    elif aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def private_folder(path: Path) -> None:
    """Make a folder to work in, or take over one that is there, if only this user can write in it.

    Raises:
        WeightopsError: it is a link, belongs to another user, or other users may write in it.
        OSError: it cannot be made.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        reason = "is a link or a file"
    elif status.st_uid != os.geteuid():
        reason = "belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = "can be written by other users"
    else:
        return
    raise WeightopsError(f"{path}: {reason}, so an unfinished output is not safe there; remove it, then run this again")


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
