"""Which files of an output are pushed to the hub, and the checks before: finished, unchanged, with a card.

The card alone may have been edited: it is written for people, and they add to it before they publish.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Message, Remedy, WeightopsError, short
from ..io.folder import read_json, stored_tensors
from ..io.hub_upload import UploadedTo, upload
from ..io.small_files import inside, read_beside
from ..version import __version__
from .provenance import RECORD, file_digest, verify

CARD = "README.md"


@dataclass(frozen=True)
class Pushable:
    """A finished output that is as weightops wrote it.

    Attributes:
        folder: Where it is.
        files: Its files by name; each is in the record, or holds tensors that are.
        left_out: Names of what else is in the folder, which is not pushed.
        notes: Lines for the user about what the files say to others.
    """

    folder: Path
    files: Mapping[str, Path]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: path.stat().st_size for name, path in self.files.items()}

    def state(self) -> dict[str, tuple[int, int, int]]:
        """What changes when a file is written again: its size, its time and its inode."""
        facts = {name: path.stat() for name, path in self.files.items()}
        return {name: (each.st_size, each.st_mtime_ns, each.st_ino) for name, each in facts.items()}


def pushable(folder: Path) -> Pushable:
    """Check an output and list its files.

    Raises:
        WeightopsError: every problem: the output is unfinished, has changed since it was written, or has no card whose
            metadata can be read.
    """
    _refuse_unfinished(folder)
    if problems := verify(folder, unchecked=(CARD,)):
        raise WeightopsError(*problems)
    record = read_json(folder / RECORD)
    recorded = record.get("files")
    if not isinstance(recorded, dict):
        raise WeightopsError(
            f"{folder / RECORD}: an earlier version wrote it, without digests of the configuration, the tokenizer and "
            "the card, so it is unknown whether they have changed; write the output again"
        )
    weights = {tensor.file.name for tensor in stored_tensors(folder).values()}
    files = {name: inside(folder / name, folder) for name in sorted({*weights, *recorded, RECORD})}
    card = read_beside(folder, CARD) if CARD in files else b""
    metadata = _metadata(folder, card)
    notes = _notes(folder, record, metadata)
    if file_digest(card) != recorded[CARD]:
        notes.append(f"{folder / CARD}: was edited; weightops verify will report it for every copy")
    above = {name.split("/")[0] for name in files}
    left_out = tuple(sorted(entry for entry in os.listdir(folder) if entry not in above))
    return Pushable(folder, files, left_out, tuple(notes))


def push(
    model: Pushable, repository: str, *, private: bool = False, overwrite: bool = False, progress: bool = True
) -> UploadedTo:
    """Upload an output to a model repository of the hub, which is made if it does not exist, in one commit.

    What was uploaded before an interruption is not sent again.

    Args:
        repository: ``org/name``.
        private: Make a private repository; one that exists and is public is refused.
        overwrite: Delete weights that the repository holds and the output does not; otherwise they are refused,
            because programs could load them in place of the output's.

    Raises:
        WeightopsError: the hub refuses it, or a file changes while it is uploaded.
    """
    before = model.state()

    def refuse_changed() -> None:
        if changed := [name for name, state in model.state().items() if state != before[name]]:
            raise WeightopsError(
                f"{model.folder / changed[0]}: has changed while it was uploaded; nothing was published; run the same "
                "command again when nothing writes it"
            )

    return upload(
        repository, model.files, private=private, overwrite=overwrite, message=f"Upload with weightops {__version__}",
        accept=refuse_changed, progress=progress,
    )  # fmt: skip


def _refuse_unfinished(folder: Path) -> None:
    place = Path(os.path.abspath(folder))
    if not folder.exists() and (place.parent / f".{place.name}.weightops").exists():
        raise WeightopsError(f"{folder}: is not finished; run the command that writes it again to resume, then push it")
    if not folder.is_dir():
        problem = f"{folder}: there is no such folder"
        raise WeightopsError(Message(problem, Remedy("name the output of a weightops command as {}", "folder")))


def _metadata(folder: Path, card: bytes) -> Mapping[str, Any]:
    """A card's metadata, read as the hub's client reads it."""
    from huggingface_hub import ModelCard

    if not card.startswith(b"---"):
        raise WeightopsError(f"{folder / CARD}: no metadata at its start (YAML between two lines ---); add it")
    try:
        return vars(ModelCard(card.decode()).data)
    except Exception as error:  # whatever the client's parser of YAML and of its fields raises
        reason = short(" ".join(str(error).split()), 200)
        raise WeightopsError(f"{folder / CARD}: its metadata cannot be read ({reason}); correct it") from error


def _notes(folder: Path, record: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    notes = []
    if not card.get("license"):
        notes.append(f"{folder / CARD}: states no licence; the hub will show none")
    named = [source.get("name") for source in record.get("sources") or () if isinstance(source, dict)]
    if local := [name for name in named if isinstance(name, str) and os.path.isabs(name)]:
        notes.append(f"{CARD} and {RECORD} name folders of this machine, which will be public: {', '.join(local[:3])}")
    return notes
