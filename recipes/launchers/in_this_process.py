"""Parts trained one after another in the process that runs the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weightops.recipes.parts.part_training import Launcher, PartTraining, TrainAll, TrainPart, attempt


@dataclass(frozen=True)
class InThisProcess(Launcher):
    """Train the parts one after another in this process."""

    @contextmanager
    def ready(self, out: Path, models: Sequence[Path]) -> Iterator[TrainAll]:
        """Always possible."""
        yield self._train

    def _train(self, trainings: Sequence[PartTraining], train_part: TrainPart) -> dict[int, str]:
        problems = {each.number: attempt(train_part, each).problem() for each in trainings}
        return {number: problem for number, problem in problems.items() if problem is not None}
