"""Tasks of lm-evaluation-harness (the package ``lm_eval``), also a folder of one's own, without a network."""

from __future__ import annotations

import io
import logging
import math
import random
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

_FEWSHOT_SEED = 1234
"""The harness's own."""


@dataclass(frozen=True)
class LmEval(Metric):
    """The weighted mean of a metric of each task, mostly the first; higher must be better.

    Data names a task as ``TASK``, ``TASK:METRIC`` or ``WEIGHT*TASK:METRIC``. Where lower is better, the weight is below
    0. The sum of weighted scores is divided by the sum of the weights' absolute values.

    Attributes:
        data: The tasks.
        tasks_from: Folder with the tasks' YAML; without it those that come with the harness, most of which are
            downloaded when they are used.
        limit: Documents of each task that are judged; 0 for all.
        shuffle: With a limit, judge documents drawn at random, the same for all candidates, instead of the first.
        num_fewshot: Examples before each question; -1 for what each task says.
        apply_chat_template: Write prompts with the tokenizer's chat template.
        fewshot_as_multiturn: With a chat template, each example is a turn of its own.
        batch: Rows in one forward pass.
    """

    higher_is_better: ClassVar[bool] = True
    words: ClassVar[str] = "score of tasks"

    tasks_from: str = ""
    limit: int = 0
    shuffle: bool = False
    num_fewshot: int = -1
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    batch: int = 8

    def __post_init__(self) -> None:
        for name, least in (("limit", 0), ("num_fewshot", -1), ("batch", 1)):
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
        if self.apply_chat_template and getattr(tokenizer, "chat_template", None) is None:
            problem = f"{models[0].spec}: its tokenizer has no chat template, so apply_chat_template must be off"
            raise WeightopsError(problem)
        with _silent():
            judged = harness.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch)
            settings: dict[str, Any] = {
                "lm": judged,
                "task_dict": self._tasks,
                "bootstrap_iters": 0,
                "log_samples": False,
                "apply_chat_template": self.apply_chat_template,
                "fewshot_as_multiturn": self.fewshot_as_multiturn,
                **self._documents(),
            }

        def measured() -> float:
            try:
                with _silent():
                    results = evaluator.evaluate(**settings)
            except Exception as error:  # a task may run any code of the harness
                raise WeightopsError(f"{short(', '.join(self.data))}: cannot be judged ({_reason(error)})") from error
            scores = [one.weight * _score(one, results) for one in self._weighed]
            return sum(scores) / sum(abs(one.weight) for one in self._weighed)

        return measured

    def _documents(self) -> dict[str, Any]:
        """Which documents are judged, as the harness's arguments."""
        if not self.shuffle or not self.limit:
            return {"limit": self.limit or None}
        samples = {}
        for name, task in _leaves(self._tasks):
            count = len(task.eval_docs)
            samples[name] = sorted(random.Random(0).sample(range(count), min(self.limit, count)))
        return {"samples": samples}

    @cached_property
    def _weighed(self) -> tuple[_Weighed, ...]:
        """The tasks with their weights and metrics.

        Raises:
            WeightopsError: a weight that is not a number, or all are 0.
        """
        weighed = tuple(map(_weighed, self.data))
        if not any(one.weight for one in weighed):
            raise WeightopsError("the weights of all tasks are 0; give one another weight")
        return weighed

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
        names = list(dict.fromkeys(one.name for one in self._weighed))
        if unknown := [name for name in names if name not in known.all_tasks]:
            available = f"available: {short(', '.join(known.all_tasks))}" if self.tasks_from else "see lm_eval ls tasks"
            raise WeightopsError(*(f"{short(name)}: no such task {where}; {available}" for name in unknown))
        try:
            with _silent():
                tasks: dict[str, Any] = library.get_task_dict(names, known)
                for _, task in _leaves(tasks):
                    self._set_examples(task)
        except Exception as error:  # a task may load any data and run any code of the harness
            what = f"{short(', '.join(names))}: cannot be loaded ({_reason(error)})"
            remedies = Remedy("check the network, as most tasks are downloaded"), Remedy("choose another {}", "metric")
            raise WeightopsError(Message(what, *remedies)) from error
        return tasks

    def _set_examples(self, task: Any) -> None:
        """Set the number of examples, except where the task itself wants none, as the harness does."""
        if self.num_fewshot >= 0 and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=self.num_fewshot)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)


@dataclass(frozen=True)
class _Weighed:
    """A task; ``metric`` is empty for its first."""

    name: str
    metric: str
    weight: float


def _weighed(text: str) -> _Weighed:
    """``WEIGHT*TASK:METRIC``, read.

    Raises:
        WeightopsError: the weight is not a finite number.
    """
    weight, star, task = text.partition("*")
    name, colon, metric = (task if star else text).rpartition(":")
    try:
        number = float(weight) if star else 1.0
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise WeightopsError(f"{short(text)}: its weight is not a number; write WEIGHT*TASK:METRIC, as 0.5*my_task:acc")
    return _Weighed(name, metric, number) if colon else _Weighed(metric, "", number)


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The tasks inside groups of tasks, by name."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield str(name), task


def _score(task: _Weighed, results: Mapping[str, Any]) -> float:
    """A task's metric; the first where none is named.

    Raises:
        WeightopsError: it does not have the metric, or lower is better and the weight is above 0.
    """
    entries = results["results"].get(task.name, {})
    values = {
        key: value
        for key, value in entries.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
    if not values:
        raise WeightopsError(f"{short(task.name)}: this task gives no number; choose another, or name its parts")
    wanted = (task.metric, f"{task.metric},none") if task.metric else values
    key = next((key for key in values if key in wanted), None)
    if key is None:
        available = f"available: {short(' '.join(values))}"
        raise WeightopsError(f"{short(task.name)}: does not have the metric {short(task.metric)}; {available}")
    metric = key.partition(",")[0]
    if task.weight > 0 and not results["higher_is_better"].get(task.name, {}).get(metric, True):
        problem = f"{short(task.name)}: of its {metric} lower is better"
        raise WeightopsError(f"{problem}; give it a weight below 0, or choose tasks of which higher is better")
    return float(values[key])


def _reason(error: Exception) -> str:
    """The first line of an error of the harness."""
    return short(str(error).strip().partition("\n")[0], 300) or type(error).__name__


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
