"""Replacing an output: which folders may be replaced, and the renames that put the new folder in place.

Only a folder that weightops or transformers wrote is replaced, and only when the new folder is complete. A folder with
any other file in it is left alone, even if the user asks to overwrite it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ..errors import Message, Remedy, WeightopsError, short
from .folder import read_json
from .hub import hub_place
from .tokenizer import FILES as TOKENIZER_FILES

RECORD: Final = "weightops.json"
TRAINING: Final = "training.json"
#: A sparse delta in a folder, beside ``guard.json`` and other small files.
DELTA: Final = "delta.safetensors"

_WEIGHTS: Final = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.safetensors", "adapter_model.bin")
#: Patterns of the files that weightops, transformers, PEFT or mergekit write into a model's folder.
_KNOWN: Final = (
    *(RECORD, TRAINING, "guard.json", "README.md", "LICENSE*", "NOTICE*", "training_args.bin", "trainer_state.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "*processor_config.json", "*.index.json"),
    *("modeling_*.py", "configuration_*.py", "tokenization_*.py", "*processing_*.py"),
    *("mergekit_config.yml", "mergekit_moe_config.yml"),
    *(*_WEIGHTS, DELTA, *TOKENIZER_FILES),
)
_FOLDERS: Final = ("additional_chat_templates",)


def refusal(out: Path) -> str | None:
    """The reason why a path may not be replaced, as a problem line; ``None`` if it may, or if nothing exists there.

    Two kinds of folder may be replaced: an empty one, and one with a ``weightops.json``, a ``training.json``, or
    weights with their configuration, if all its other files are usual in a model's folder or listed in its record.
    """
    reason = _reason(out) if os.path.lexists(out) else None
    return reason and not_replaced(out, reason)


def not_replaced(out: Path, reason: str) -> str:
    """The problem line of an output that stays."""
    return f"{out}: is not replaced, because {reason}; move it elsewhere, or choose another output"


def _reason(out: Path) -> str | None:
    if out.is_symlink():
        return "it is a link"
    if not out.is_dir():
        return "it is not a folder that weightops or transformers wrote"
    folder, current = out.resolve(), Path.cwd()
    if current.is_relative_to(folder):
        return "the current folder is inside it" if current != folder else "it is the current folder"
    if os.path.ismount(out):
        return "it is a mount point"
    try:
        entries = _entries(out)
        unknown = _unknown(out, entries)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return f"it contains files that do not belong to a model: {', '.join(unknown[:3])}{more}"
    if entries and not _is_output(set(entries)):
        return "it does not contain weights with a configuration"
    return None


def _entries(out: Path) -> dict[str, os.DirEntry[str]]:
    """The entries of a folder, and of the subfolders that a model's folder may have, by relative name."""
    entries: dict[str, os.DirEntry[str]] = {}
    with os.scandir(out) as listing:
        for entry in sorted(listing, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and entry.name in _FOLDERS:
                with os.scandir(entry) as inner:
                    entries |= {f"{entry.name}/{each.name}": each for each in sorted(inner, key=lambda each: each.name)}
            else:
                entries[entry.name] = entry
    return entries


def _unknown(out: Path, entries: dict[str, os.DirEntry[str]]) -> list[str]:
    """The names, shortened for a message, of entries that neither weightops nor transformers wrote."""
    recorded = _recorded(out) if RECORD in entries else frozenset()
    unknown = []
    for name, entry in entries.items():
        expected = name in recorded or any(fnmatchcase(name, pattern) for pattern in _KNOWN)
        if not (expected and entry.is_file(follow_symlinks=False)):
            unknown.append(short(name) + "/" * entry.is_dir(follow_symlinks=False))
    return unknown


def _recorded(out: Path) -> frozenset[str]:
    """The small files that the record of an output lists, with or without their digests."""
    try:
        names = read_json(out / RECORD).get("files")
    except WeightopsError:
        return frozenset()
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list | dict) else frozenset()


def _is_output(names: set[str]) -> bool:
    if names & {RECORD, TRAINING, DELTA}:
        return True
    weights = any(fnmatchcase(name, pattern) for name in names for pattern in _WEIGHTS)
    return weights and bool(names & {"config.json", "adapter_config.json"})


def exists_already(out: Path) -> str:
    """The problem line for an output that already exists."""
    return Message(
        f"{out}: exists already", Remedy("choose another {}", "out"), Remedy("replace it with {}", "overwrite", True)
    )


def check_place(out: Path, *, overwrite: bool, why_not: Callable[[Path], str | None] = refusal) -> None:
    """Refuse an output path that exists, unless it may and should be replaced.

    Args:
        out: The output path.
        overwrite: Whether to replace what is there.
        why_not: A function from a path to the reason why it may not be replaced, as a problem line, or ``None``;
            :func:`refusal` for models.

    Raises:
        WeightopsError: the path exists and is not replaced, with the reason, or it names a repository of the hub.
    """
    if problems := place_problems(out, overwrite=overwrite, why_not=why_not):
        raise WeightopsError(*problems)


def place_problems(out: Path, *, overwrite: bool, why_not: Callable[[Path], str | None] = refusal) -> list[str]:
    """The problem line that :func:`check_place` would raise; empty if the path is free or may be replaced."""
    if problem := hub_place(out):
        return [problem]
    if not os.path.lexists(out):
        return []
    problem = why_not(out) if overwrite else exists_already(out)
    return [problem] if problem else []


def put_in_place(
    new: Path, out: Path, aside: Path, *, overwrite: bool, why_not: Callable[[Path], str | None] = refusal
) -> None:
    """Rename the old ``out`` to ``aside``, then the new folder to ``out``; after a crash one of the two is there.

    The caller deletes ``aside``. ``why_not``: see :func:`check_place`.

    Raises:
        WeightopsError: ``out`` exists and is not replaced, with the reason.
    """
    check_place(out, overwrite=overwrite, why_not=why_not)
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
    """After a kill: put the old output back, or delete it if the new output is already in place."""
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(out):
        aside.rename(out)
    elif aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def private_folder(path: Path) -> None:
    """Make a working folder, or take over an existing one if only this user can write to it.

    Raises:
        WeightopsError: the path is a link, belongs to another user, or other users may write to it.
        OSError: the folder cannot be made.
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
    raise WeightopsError(f"{path}: {reason}, so an unfinished output would not be safe there; remove it, then rerun")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
