"""What a metric is: a number for a loaded model, higher or lower being better. Each is a file of ``metrics/``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from blake3 import blake3

from ..discovery import class_in, kinds_in

if TYPE_CHECKING:
    from ..algebra.checkpoint import Checkpoint

_FOLDER = Path(__file__).parent / "metrics"


@dataclass(frozen=True)
class Metric(ABC):
    """A measure of a loaded model. Fields are its settings: numbers, texts or flags, each with a default.

    Attributes:
        data: What it is measured on: files of rows, or names of tasks.
    """

    higher_is_better: ClassVar[bool]
    words: ClassVar[str]
    """What the number is, for tables and pictures."""

    data: tuple[str, ...] = ()

    def on(self, data: Sequence[str]) -> Self:
        """The same metric on other data."""
        return replace(self, data=tuple(data))

    @abstractmethod
    def content(self) -> str:
        """A digest of everything in the data that the score depends on; reads and checks it.

        Raises:
            WeightopsError: no data, or data that the metric cannot use.
        """

    @abstractmethod
    def ready(self, model: Any, tokenizer: Any, models: Sequence[Checkpoint]) -> Callable[[], float]:
        """A function that measures the model with the weights that it has when the function is called.

        Args:
            model: On its device; in evaluation mode.
            models: What candidates are made of; the first is the one that was loaded.

        Raises:
            WeightopsError: the data or the model do not fit the metric.
        """

    def files(self, models: Sequence[Checkpoint]) -> Mapping[str, bytes]:
        """Further files that the chosen model needs to be used as it was measured."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The metric's name, data and settings, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"metric": type(self).__name__, **values, "data": list(self.data)}

    def identity(self) -> str:
        """A digest of the metric's settings and the content of its data; names of files do not count."""
        settings = {name: value for name, value in self.settings().items() if name != "data"}
        return blake3(repr((sorted(settings.items(), key=str), self.content())).encode()).hexdigest()


def metrics() -> tuple[str, ...]:
    """The names of the metrics."""
    return kinds_in(_FOLDER)


def metric_class(name: str) -> type[Metric]:
    """The metric of a name; ``held-out-loss`` and ``held_out_loss`` are the same.

    Raises:
        WeightopsError: no such metric.
    """
    chosen: type[Metric] = class_in(f"{__package__}.metrics", _FOLDER, name.replace("-", "_"), "metric")
    return chosen
