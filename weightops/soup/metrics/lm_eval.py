"""Tasks of lm-evaluation-harness (the package ``lm_eval``), also a folder of one's own, without a network."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from ...errors import Message, Remedy, WeightopsError, short
from ...extras import needed
from ...io.small_files import open_file
from ..metric import Metric

if TYPE_CHECKING:
    from ...algebra.checkpoint import Checkpoint


@dataclass(frozen=True)
class LmEval(Metric):
    """The mean of the first metric of each task, the tasks weighing the same; for all of them higher must be better.

    Attributes:
        data: Names of tasks.
        tasks_from: Folder with the tasks' YAML; without it those that come with the harness, most of which are
            downloaded when they are used.
        limit: Documents of each task that are judged; 0 for all.
        batch: Rows in one forward pass.
    """

    higher_is_better: ClassVar[bool] = True
    words: ClassVar[str] = "score of tasks"

    tasks_from: str = ""
    limit: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        for name, least in (("limit", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise WeightopsError(Message(f"{name} must be at least {least}", Remedy("change {}", name)))

    def content(self) -> str:
        """The digest of the tasks' names and of the files of their folder; checks the names."""
        if not self.data:
            raise WeightopsError(Message("no tasks to judge by", Remedy("name them as {}", "data")))
        self._tasks  # noqa: B018  # checks the names
        folder = Path(self.tasks_from).expanduser()
        files = sorted(file for file in folder.rglob("*") if file.is_file()) if self.tasks_from else []
        digests = [(str(file.relative_to(folder)), _digest(file)) for file in files]
        version = getattr(needed("lm_eval", "lm-eval", "eval"), "__version__", "")
        return blake3(repr((self.data, digests, version)).encode()).hexdigest()

    def ready(self, model: Any, tokenizer: Any, models: Sequence[Checkpoint]) -> Callable[[], float]:
        """Loads the tasks."""
        evaluator = needed("lm_eval.evaluator", "lm-eval", "eval")
        harness = needed("lm_eval.models.huggingface", "lm-eval", "eval")
        tasks = self._tasks
        with _silent():
            judged = harness.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch)

        def measured() -> float:
            with _silent():
                evaluated = evaluator.evaluate(
                    lm=judged, task_dict=tasks, limit=self.limit or None, bootstrap_iters=0, log_samples=False
                )
            scores = [_score(name, evaluated) for name in evaluated["results"]]
            return sum(scores) / len(scores)

        return measured

    @cached_property
    def _tasks(self) -> dict[str, Any]:
        """The tasks by name.

        Raises:
            WeightopsError: an unknown task, or one that cannot be loaded, or the harness is not installed.
        """
        library = needed("lm_eval.tasks", "lm-eval", "eval")
        folder = Path(self.tasks_from).expanduser()
        if self.tasks_from and not folder.is_dir():
            raise WeightopsError(Message(f"{folder}: no such folder", Remedy("change {}", "tasks_from")))
        where = f"in {folder}" if self.tasks_from else "in the harness"
        with _silent():
            known = library.TaskManager(
                include_path=str(folder) if self.tasks_from else None, include_defaults=not self.tasks_from
            )
        if unknown := [name for name in self.data if name not in known.all_tasks]:
            available = f"available: {short(', '.join(known.all_tasks))}" if self.tasks_from else "see lm_eval ls tasks"
            raise WeightopsError(*(f"{short(name)}: no such task {where}; {available}" for name in unknown))
        try:
            with _silent():
                tasks: dict[str, Any] = library.get_task_dict(list(self.data), known)
        except Exception as error:  # a task may load any data and run any code of the harness
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WeightopsError(f"{', '.join(self.data)}: cannot be loaded ({reason})") from error
        return tasks


def _score(name: str, evaluated: Mapping[str, Any]) -> float:
    """The first metric of a task's results.

    Raises:
        WeightopsError: it has none, or lower is better.
    """
    values = {key: value for key, value in evaluated["results"][name].items() if "," in key and "_stderr" not in key}
    first = next((key for key, value in values.items() if isinstance(value, int | float)), None)
    if first is None:
        raise WeightopsError(f"{short(name)}: this task gives no number; choose another")
    metric = first.partition(",")[0]
    if not evaluated["higher_is_better"].get(name, {}).get(metric, True):
        raise WeightopsError(f"{short(name)}: of its {metric} lower is better; choose tasks of which higher is better")
    return float(values[first])


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the harness's bars, warnings and log lines off the terminal."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _digest(file: Path) -> str:
    digest = blake3()
    with open(open_file(file), "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
