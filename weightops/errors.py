"""What goes wrong: one exception base, one line for each problem, and its remedies as data."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

#: Characters of one problem's line. Names and values in it come from files, and a header may hold names of megabytes.
MOST_CHARACTERS = 2_000
_KEPT_AT_END = 500  # what to do stands at the end


@dataclass(frozen=True)
class Remedy:
    """What to do about a problem, kept apart from the words for the setting that does it.

    The Python API names a keyword argument, the command line an option, so only the caller knows the words.

    Attributes:
        advice: What to do; ``{}`` stands for the setting, as in "choose another {}".
        setting: The setting by its Python name; none where the advice needs no setting.
        value: What to set it to, where that is known.
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
    """A line for the user that carries its remedies as data; as text, it words them for Python.

    >>> Message("out: exists already", Remedy("choose another {}", "out"), Remedy("pass {}", "overwrite", True))
    'out: exists already; choose another out, or pass overwrite=True'
    """

    what: str
    remedies: tuple[Remedy, ...]

    def __new__(cls, what: str, *remedies: Remedy) -> Message:
        """A line that says what is wrong, and where, and then each remedy."""
        line = super().__new__(cls, _sentence(what, [remedy.in_python() for remedy in remedies]))
        line.what, line.remedies = what, remedies
        return line

    def at(self, place: str) -> Message:
        """The same line with a place in front of it."""
        return Message(f"{place}: {self.what}", *self.remedies)

    def worded(self, words: Callable[[Remedy], str | None]) -> str:
        """The line with its remedies in the caller's words; ``None`` leaves out one that the caller does not offer."""
        advice = [words(remedy) if remedy.setting else remedy.advice for remedy in self.remedies]
        return _sentence(self.what, [text for text in advice if text])


def at(place: str, problem: str) -> str:
    """A problem with a place in front of it, its remedies kept."""
    return problem.at(place) if isinstance(problem, Message) else f"{place}: {problem}"


def worded(problem: str, words: Callable[[Remedy], str | None]) -> str:
    """A problem in the caller's words; see :meth:`Message.worded`."""
    return problem.worded(words) if isinstance(problem, Message) else problem


def _sentence(what: str, advice: list[str]) -> str:
    return "; ".join([what, ", or ".join(advice)]) if advice else what


class WeightopsError(Exception):
    """Anything the user can act on.

    Each problem is one line: what is wrong, where (file, tensor, key), and what to do. What cannot be printed, a line
    break in a stranger's tensor name for instance, stands in it as an escape. A line longer than
    :data:`MOST_CHARACTERS` is cut in its middle.

    >>> print(WeightopsError("a\\nb: unknown dtype"))
    a\\nb: unknown dtype
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(_printable(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def short(value: object, most: int = 80) -> str:
    """A name or a value from a file, short enough to stand in a problem's line.

    Text stands as it is, anything else as ``repr`` shows it with long parts left out.

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
    """Run every action and report the problems of all of them together.

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
