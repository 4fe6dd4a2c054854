"""The folder of an unfinished training: ``.OUT.training`` beside ``OUT``, with its checkpoints.

It also holds a stamp of the model, rows and settings, so that only the same training resumes from the checkpoints, and
a lock, so that no other training writes there at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightops.errors import Message, Remedy, WeightopsError
from weightops.io.output_lock import OutputLock
from weightops.io.replacing import check_place, put_in_place, recover

STAMP = "stamp"


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way, before anything is loaded.

    Raises:
        WeightopsError: it exists and is not to be replaced, is nothing that weightops or transformers wrote, or another
            process is training to it.
    """
    check_place(out, overwrite=overwrite)
    if _lock(out).file.exists():
        with only_training(out):
            pass


@contextmanager
def only_training(out: Path) -> Iterator[None]:
    """The right to train to ``out``; of the processes of one training the first takes it for all.

    Raises:
        WeightopsError: another training has it.
    """
    with _lock(out) if os.environ.get("RANK", "0") == "0" else nullcontext():
        yield


def _lock(out: Path) -> OutputLock:
    return OutputLock(out, "training")


def unfinished_folder(out: Path) -> Path:
    """Where the checkpoints of a training to ``out`` are."""
    return out.absolute().with_name(f".{out.absolute().name}.training")


@dataclass(frozen=True)
class Unfinished:
    """The folder of a training that is running or was interrupted. Writing to it needs :func:`only_training`.

    Attributes:
        out: Where the finished model goes.
        stamp: A digest of everything that decides the weights.
        overwrite: Whether to replace an output, or another training's checkpoints, in its place.
        keeps: Whether the checkpoints are put into the output.
    """

    out: Path
    stamp: str
    overwrite: bool
    keeps: bool = False

    @classmethod
    def of(cls, out: Path, overwrite: bool, model: Any, rows: Any, objective: Any, training: Any) -> Unfinished:
        """The folder for a training to ``out``.

        Raises:
            WeightopsError: the output exists, or an unfinished run of another training is in the way.
        """
        check_place(out, overwrite=overwrite)
        unfinished = cls(out, _stamp(model, rows, objective, training), overwrite, training.keep_checkpoints)
        if unfinished.checkpoint() is not None and not unfinished._same() and not overwrite:
            what = f"{unfinished.folder}: an unfinished run of another training"
            remedies = Remedy("finish that one"), Remedy("discard it with {}", "overwrite", True)
            raise WeightopsError(Message(what, *remedies))
        return unfinished

    @property
    def folder(self) -> Path:
        """Where checkpoints are written."""
        return unfinished_folder(self.out)

    def begin(self) -> None:
        """Delete what another training left in the folder."""
        recover(self.out, self.folder / "replaced")
        if not self._same():
            _lock(self.out).sweep()
        (self.folder / STAMP).write_text(self.stamp)

    def checkpoint(self) -> Path | None:
        """The last complete checkpoint: transformers writes ``trainer_state.json`` last."""
        return max(self._checkpoints(), key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    @contextmanager
    def finish(self) -> Iterator[Path]:
        """A folder to fill, which is then renamed to ``out``; the checkpoints are deleted, or put into it."""
        model = self.folder / "model"
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir()
        yield model
        for file in model.iterdir():
            file.chmod(model.stat().st_mode & 0o666)  # safetensors makes files private; the umask should decide
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if self.keeps:
            for checkpoint in self._checkpoints():
                shutil.copytree(checkpoint, model / checkpoint.name, copy_function=os.link)
        put_in_place(model, self.out, self.folder / "replaced", overwrite=self.overwrite)
        _lock(self.out).sweep()

    def _checkpoints(self) -> list[Path]:
        return [folder for folder in self.folder.glob("checkpoint-*") if _whole(folder)]

    def _same(self) -> bool:
        try:
            return (self.folder / STAMP).read_text() == self.stamp
        except OSError:
            return False


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def _stamp(model: Any, rows: Any, objective: Any, training: Any) -> str:
    digest = hashlib.sha256(repr((rows, objective, training)).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:64].tolist()}".encode())
    return digest.hexdigest()
