"""What a strategy is: a way to choose one candidate by its score. Each is a file of ``strategies/``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..discovery import class_in, kinds_in

if TYPE_CHECKING:
    from .bench import Bench
    from .candidate import Candidate
    from .ingredients import Ingredients
    from .metric import Metric

_FOLDER = Path(__file__).parent / "strategies"


@dataclass(frozen=True)
class Named:
    """What the file of a strategy names.

    Attributes:
        where: The file.
        models: What is merged.
        base: What they were tuned from, where that takes part.
        metric: What judges, unless another metric is chosen.
        notes: What in the file has no effect.
    """

    where: str
    models: tuple[str, ...]
    base: str | None
    metric: Metric | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to choose a candidate. Fields are its settings: numbers, texts or flags, each with a default.

    ``weightops soup`` makes a command of each class, named after its file, with an option for each field; the help is
    the docstring's.
    """

    example: ClassVar[str]
    """A command line that uses it, for the help."""
    paper: ClassVar[tuple[str, str] | None] = None
    """Title and arXiv id."""
    fewest: ClassVar[int] = 2
    """Least number of models to merge, without the base."""
    needs_base: ClassVar[bool] = False
    needs_metric: ClassVar[bool] = True
    reads_file: ClassVar[bool] = False
    """Whether its field ``file`` names a file that names models, base and metric; see :meth:`named`."""
    dtype: ClassVar[str] = "auto"
    """Dtype of the output, unless another is chosen."""

    def named(self) -> Named | None:
        """What its file names, where it has one.

        Raises:
            WeightopsError: all problems of the file.
        """
        return None

    def problems(self, names: Sequence[str], base: str | None) -> Iterator[str]:
        """Problems of the settings, before anything is loaded."""
        yield from ()

    def misfits(self, ingredients: Ingredients) -> Iterator[str]:
        """What prevents it with these opened models, as far as headers show."""
        yield from ()

    @abstractmethod
    def evaluations(self, names: Sequence[str]) -> int:
        """Most candidates that are judged for these models, beside each model alone and the plain mean."""

    @abstractmethod
    def choose(self, bench: Bench) -> Candidate:
        """The best candidate. It was judged, where there is a metric.

        Raises:
            WeightopsError: no candidate could be judged.
        """


def strategies() -> tuple[str, ...]:
    """The names of the strategies."""
    return kinds_in(_FOLDER)


def strategy_class(name: str) -> type[Strategy]:
    """The strategy of a name; ``wise-ft`` and ``wise_ft`` are the same.

    Raises:
        WeightopsError: no such strategy.
    """
    chosen: type[Strategy] = class_in(f"{__package__}.strategies", _FOLDER, name.replace("-", "_"), "strategy")
    return chosen
