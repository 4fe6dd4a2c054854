"""The training of one part, and what a launcher must do, which decides where such trainings run.

A launcher is one class in ``launchers/``: a frozen dataclass whose fields are its parameters. It is given trainings and
the function that does one of them. Each writes its own folder, so one that was interrupted resumes wherever it is run
again. A part whose training failed is named and left out; the others continue.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weightops.errors import WeightopsError
from weightops.io.replacing import private_folder
from weightops.rows.row import Row


@dataclass(frozen=True)
class PartTraining:
    """What the training of a part is given.

    Attributes:
        number: Of the part, from 0.
        title: What progress and errors call it.
        recipe: Settings of its routine.
        rows: To train on.
        folder: Where the sub-model goes.
        stamp: A digest of everything that decides the sub-model.
        overwrite: Replace what lies in the folder.
        trust_remote_code: Run the Python code in the base's folder, if it needs it.
    """

    number: int
    title: str
    recipe: Any
    rows: tuple[Row, ...]
    folder: Path
    stamp: str
    overwrite: bool = False
    trust_remote_code: bool = False

    @property
    def run_folder(self) -> Path:
        """For the log of a training in another process, and what that process is given."""
        return self.folder.with_name(f".{self.folder.name}.run")


TrainPart = Callable[[PartTraining], object]
"""Trains one part, in the process that calls it."""
TrainAll = Callable[[Sequence[PartTraining], TrainPart], dict[int, str]]
"""Trains parts, and gives the problem of each that failed, by its number."""


class Launcher(Protocol):
    """Where parts are trained."""

    def ready(self, out: Path, models: Sequence[Path]) -> AbstractContextManager[TrainAll]:
        """What trains parts, checked before anything starts.

        Args:
            out: Folder in which the sub-models' folders are to be made; it need not exist yet.
            models: Local folders that are read.

        Raises:
            WeightopsError: parts cannot be trained in this way here.
        """


@dataclass(frozen=True)
class Ended:
    """How the training of a part ended.

    Attributes:
        problems: Why it failed; none if it did not.
        others_go_on: Whether the other parts are merged without this one, for instance where its loss is no longer a
            number. Wrong settings and rows end the whole run.
    """

    problems: tuple[str, ...] = ()
    others_go_on: bool = False

    def problem(self) -> str | None:
        """Why the part is left out; none where it is not.

        Raises:
            WeightopsError: the problem ends the whole run.
        """
        if self.problems and not self.others_go_on:
            raise WeightopsError(*self.problems)
        return self.problems[0] if self.problems else None


def attempt(train_part: TrainPart, training: PartTraining) -> Ended:
    """Train a part here. The checkpoints of one that diverged are deleted: to resume from them would not help."""
    from weightops.recipes.floor.trainer import DivergedError
    from weightops.recipes.floor.unfinished import unfinished_folder

    try:
        train_part(training)
    except DivergedError as error:
        shutil.rmtree(unfinished_folder(training.folder), ignore_errors=True)
        return Ended(error.problems, others_go_on=True)
    except WeightopsError as error:
        return Ended(error.problems)
    return Ended()


def attempt_apart(train_part: TrainPart, training: PartTraining) -> Ended:
    """Train a part in a process of its own: what goes wrong unforeseen, a full disk say, concerns this part alone."""
    try:
        return attempt(train_part, training)
    except Exception as error:
        traceback.print_exc()
        line = str(error).strip().partition("\n")[0]
        return Ended((f"{training.title}: {type(error).__name__}: {line}",), others_go_on=True)


def begin_run_folder(training: PartTraining) -> None:
    """Make the run folder of a training, empty, so that only this user can write it."""
    folder = training.run_folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    private_folder(folder)
    shutil.rmtree(folder)
    private_folder(folder)
