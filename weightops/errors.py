"""Errors for the user: one exception base, one line for each problem, and remedies as data."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

#: Most characters of a problem's line. Names and values come from files, and a header may have names of megabytes.
MOST_CHARACTERS = 2_000
_KEPT_AT_END = 500  # the end says what to do


@dataclass(frozen=True)
class Remedy:
    """What to do about a problem, without the words for the setting.

    The Python API names a keyword argument and the command line an option, so the caller supplies the words.

    Attributes:
        advice: What to do; ``{}`` stands for the setting, as in "choose another {}".
        setting: The setting by its Python name; ``None`` if the advice needs no setting.
        value: The value to set, if known.
    """

    advice: str
    setting: str | None = None
    value: Any = None

    def in_python(self) -> str:
        """The advice with the setting as a keyword argument.

        >>> Remedy("pass {} to replace it", "overwrite", True).in_python()
        'pass overwrite=True to replace it'
        """
        return self.advice.format(self.setting if self.value is None else f"{self.setting}={self.value!r}")


class Message(str):
    """A line for the user with its remedies as data; the text itself words them for Python.

    >>> Message("out: exists already", Remedy("choose another {}", "out"), Remedy("pass {}", "overwrite", True))
    'out: exists already; choose another out, or pass overwrite=True'
    """

    what: str
    remedies: tuple[Remedy, ...]

    def __new__(cls, what: str, *remedies: Remedy) -> Message:
        """Make a line that says what is wrong and where, followed by each remedy."""
        line = super().__new__(cls, _sentence(what, [remedy.in_python() for remedy in remedies]))
        line.what, line.remedies = what, remedies
        return line

    def at(self, place: str) -> Message:
        """The same line with a place in front of it."""
        return Message(f"{place}: {self.what}", *self.remedies)

    def worded(self, words: Callable[[Remedy], str | None]) -> str:
        """The line with its remedies in the caller's words; ``None`` leaves out a remedy."""
        advice = [words(remedy) if remedy.setting else remedy.advice for remedy in self.remedies]
        return _sentence(self.what, [text for text in advice if text])


def at(place: str, problem: str) -> str:
    """A problem with a place in front of it; it keeps its remedies."""
    return problem.at(place) if isinstance(problem, Message) else f"{place}: {problem}"


def worded(problem: str, words: Callable[[Remedy], str | None]) -> str:
    """A problem in the caller's words; see :meth:`Message.worded`."""
    return problem.worded(words) if isinstance(problem, Message) else problem


def _sentence(what: str, advice: list[str]) -> str:
    return "; ".join([what, ", or ".join(advice)]) if advice else what


class WeightopsError(Exception):
    """An error that the user can act on.

    Each problem is one line: what is wrong, where (file, tensor, key), and what to do. Unprintable characters, such as
    a line break in a tensor name, are escaped. A line longer than :data:`MOST_CHARACTERS` is cut in the middle.

    >>> print(WeightopsError("a\\nb: unknown dtype"))
    a\\nb: unknown dtype
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(_printable(problem) for problem in problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[WeightopsError], tuple[str, ...]]:
        """An error that comes from another process keeps its lines, and their remedies."""
        return type(self), self.problems


class ResumableError(WeightopsError):
    """A :class:`WeightopsError` that may not recur: what was written so far is kept, and the same call resumes."""


def short(value: object, most: int = 80) -> str:
    """A name or a value from a file, short enough for a problem's line.

    Text is shown as it is, other values as ``repr`` with long parts left out.

    >>> short("model." * 30, 40), short([1] * 50)
    ('model.model.model.model.m...model.model.', '[1, 1, 1, 1, 1, 1, ...]')
    """
    text = value if isinstance(value, str) else reprlib.repr(value)
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 2]}...{text[-end + 1 :]}"


def _printable(text: str) -> str:
    if isinstance(text, Message):
        return Message(_printable(text.what), *text.remedies)
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - _KEPT_AT_END]}...{text[-_KEPT_AT_END:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def attempt_all(actions: Iterable[Callable[[], T]]) -> list[T]:
    """Run every action and report all their problems together.

    Raises:
        WeightopsError: with every problem that any action raised, in order, each once.

    >>> attempt_all([lambda: 1, lambda: 2])
    [1, 2]
    """
    results: list[T] = []
    problems: dict[str, None] = {}
    for action in actions:
        try:
            results.append(action())
        except WeightopsError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise WeightopsError(*problems)
    return results
