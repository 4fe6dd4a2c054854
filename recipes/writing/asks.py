"""What passes, judges and writers agree on.

A pass handles one row at a time and reads like it: ``rewrite`` is a generator that yields what it needs (an
:class:`Ask`) and is sent the answer. The run (``pass_run.py``) has many rows under way, so that a model answers whole
batches; it also remembers answers. So no pass knows of batches, of resuming, or of who writes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from weightops.rows.row import Row, Turns

Record = dict[str, Any]
"""A row that a pass made, as JSON: the fields of docs/data.md, and other columns."""


class AskRefusedError(Exception):
    """A single ask that cannot be answered, such as a prompt longer than the model's context. Raised in the pass."""


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        text: Without special tokens.
        whole: Whether the writer ended it; otherwise it was cut off by a limit.
    """

    text: str
    whole: bool

    @property
    def usable(self) -> bool:
        """Whether it is whole and says something."""
        return self.whole and bool(self.text.strip())


@dataclass(frozen=True)
class Write:
    """Have answers written. The reply is a tuple of :class:`Written`, one for each sample.

    Attributes:
        by: Who writes.
        prompt: What the user says, or a conversation that ends with the user.
        samples: How many answers.
    """

    by: Writer
    prompt: Turns
    samples: int = 1


@dataclass(frozen=True)
class Rate:
    """How probable an answer is to a model. The reply is the mean of its tokens' log-probabilities, its end included.

    Attributes:
        by: The model; a writer that runs here.
        prompt: What the answer answers.
        answer: The text.
        chat: Whether the prompt goes through the model's chat template, where it has one.
    """

    by: Writer
    prompt: Turns
    answer: str
    chat: bool = True


@dataclass(frozen=True)
class RunProgram:
    """Run a program in the sandbox. The reply is a :class:`~weightops.recipes.sandbox.sandbox.Ran`.

    Attributes:
        program: Python source.
        seconds: When to stop it.
        megabytes: Memory that it may use.
    """

    program: str
    seconds: float
    megabytes: int


@dataclass(frozen=True)
class Note:
    """Something to count and to say once at the end. The reply is ``None``."""

    text: str


Ask = Write | Rate | RunProgram | Note
Steps = Generator[Ask, Any, Sequence[Record]]
"""A pass at work on one row: returns the rows that it becomes."""
Verdict = Generator[Ask, Any, bool]
"""A judge at work on one answer."""


class DataPass(Protocol):
    """Rows to rows: a frozen dataclass in ``passes/``, named after its file. Its fields are its settings in YAML."""

    def problems(self, row: Row) -> Iterable[str]:
        """What is wrong with a row, before anything is written."""

    def rewrite(self, row: Row) -> Steps:
        """The rows that a row becomes."""


class Judge(Protocol):
    """Whether an answer is right: a frozen dataclass in ``judges/``, named after its file."""

    def problems(self, row: Row) -> Iterable[str]:
        """What the row lacks to be judged by."""

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether the answer is right. An exception means that it could not be judged."""


class Writer(Protocol):
    """Who writes: a frozen dataclass in ``writers/``, named after its file."""

    def opened(self, base: str | None) -> AbstractContextManager[OpenWriter]:
        """Ready to write, until the block ends.

        Args:
            base: Model of the recipe, for a writer that names none.

        Raises:
            WeightopsError: it cannot be opened.
        """


class OpenWriter(Protocol):
    """A writer that is ready.

    Attributes:
        identity: All that decides what it writes, the ask itself apart: the model's content, and settings.
        batch: Asks to give it at a time.
    """

    identity: str
    batch: int

    def write(self, asks: Sequence[Write], keys: Sequence[str]) -> list[tuple[Written, ...] | AskRefusedError]:
        """The answers to some asks; ``keys`` identify the asks and seed what is drawn."""

    def rate(self, asks: Sequence[Rate]) -> list[float | AskRefusedError]:
        """Mean log-probabilities.

        Raises:
            WeightopsError: it cannot tell them.
        """


@dataclass(frozen=True)
class Question:
    """A row as a question and its right answer.

    Attributes:
        prompt: What is asked.
        gold: The answer in the data.
        columns: The row's other columns.
    """

    prompt: Turns
    gold: str
    columns: Mapping[str, Any]


def question(row: Row) -> Question:
    """The question and the answer of a row: ``prompt`` and ``completion``, or ``messages`` whose last is the answer."""
    if row.messages is not None:
        return Question(tuple(row.messages[:-1]), str(row.messages[-1]["content"]), row.columns)
    assert row.prompt is not None  # see question_problems
    assert isinstance(row.completion, str)
    return Question(row.prompt, row.completion, row.columns)


def question_problems(row: Row) -> Iterable[str]:
    """Why :func:`question` cannot read a row."""
    if row.wrong.keys() & {"messages", "prompt", "completion"}:
        yield from (row.wrong[name] for name in ("messages", "prompt", "completion") if name in row.wrong)
    elif row.messages is not None:
        last = row.messages[-1]
        if len(row.messages) < 2 or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            yield "messages: the last must be the assistant's, a text, and answer another message"
    elif row.prompt is None or not isinstance(row.completion, str):
        yield "needs prompt and completion (a text), or messages that end with the assistant's answer"


def asked(prompt: Turns) -> str:
    """The last thing that the user says."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def verdict(judge: Judge, row: Row, answer: str) -> Generator[Ask, Any, bool | None]:
    """What a judge says of an answer; ``None``, with a note, if it raises."""
    try:
        accepted: bool = yield from judge.accepts(row, answer)
    except Exception as error:  # a judge is anybody's code
        yield Note(f"the judge failed: {error or type(error).__name__}")
        return None
    return accepted
