"""The folder of the sub-models, ``OUT-parts``: what each was trained on, which are there, and which are in the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weightops.errors import Message, Remedy, WeightopsError
from weightops.io.replacing import TRAINING
from weightops.io.small_files import read_small
from weightops.recipes.floor.unfinished import check_free
from weightops.rows.row import Row

if TYPE_CHECKING:
    from weightops.algebra.checkpoint import Checkpoint, Delta

REPORT: Final = "report.json"
MERGING: Final = ".merging"
"""Folder in which the merged result is written and measured, before it gets its place."""
_PART = re.compile(r"part-\d+|\.part-\d+\.(training|run)|\.merging")


@dataclass(frozen=True)
class TrainedPart:
    """A sub-model.

    Attributes:
        number: Of its part.
        folder: Where it lies.
        rows: How many it was trained on.
        tokens: Learnt tokens of its rows, where its log counts them.
        losses: The mean loss of each step.
        problem: Why it is left out; none where it is merged.
    """

    number: int
    folder: Path
    rows: int
    tokens: int | None = None
    losses: tuple[float, ...] = ()
    problem: str | None = None

    def change(self, base: Checkpoint) -> Delta:
        """What it adds to the base."""
        from weightops.algebra.opening import is_added, open_adapter, open_checkpoint

        if is_added(self.folder):
            return open_adapter(self.folder)
        change: Delta = open_checkpoint(self.folder) - base
        return change


def stamp_of(base: Checkpoint, settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A digest of everything that decides a sub-model."""
    from weightops.io.cache import stamp

    files = {tensor.file for tensor in base.source.tensors.values()}
    for folder in base.folders:
        files |= {file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".jinja")}
    texts = [replace(row, place="") for row in rows]
    return hashlib.sha256(repr((stamp(sorted(files), 1), settings, texts)).encode("utf-8", "replace")).hexdigest()


def log_of_part(folder: Path) -> dict[str, Any]:
    """What a finished training notes; nothing where there is none."""
    return _json(folder / TRAINING)


def note_stamp(folder: Path, stamp: str) -> None:
    """Write a stamp into the log of a training."""
    (folder / TRAINING).write_text(json.dumps({**log_of_part(folder), "stamp": stamp}, indent=2) + "\n")


def check_parts(place: Path, stamps: Sequence[str], kind: str, overwrite: bool) -> None:
    """Refuse parts of another training, before anything is trained; those beyond the number wanted go.

    Args:
        place: The folder of the sub-models.
        stamps: Of the parts that are wanted.
        kind: What a report in the folder must call itself.
        overwrite: Replace parts of another training.

    Raises:
        WeightopsError: parts of another training and no ``overwrite``, or what was not written by us.
    """
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise WeightopsError(f"{place}: the parts belong there, but it is a link or a file; choose another output")
    wanted = {f"part-{number}": stamp for number, stamp in enumerate(stamps)}
    names = sorted(path.name for path in place.iterdir())
    strange = [name for name in names if not _PART.fullmatch(name) and name != REPORT]
    if strange or (REPORT in names and _json(place / REPORT).get("kind") != kind):
        raise WeightopsError(f"{place / (strange or [REPORT])[0]}: the parts belong there; choose another output")
    finished = [name for name in names if not name.startswith(".") and name != REPORT]
    others = [name for name in finished if wanted.get(name) != log_of_part(place / name).get("stamp")]
    if others and not overwrite:
        what = f"{place / others[0]}: was trained on other rows or with other settings"
        remedies = Remedy("choose another {}", "out"), Remedy("replace it with {}", "overwrite", True)
        raise WeightopsError(Message(what, *remedies))
    for name in others:
        check_free(place / name, overwrite)
    for name in set(others) - wanted.keys():
        shutil.rmtree(place / name)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_small(file))
    except (OSError, ValueError, WeightopsError):
        return {}
    return content if isinstance(content, dict) else {}
