"""What goes wrong, said once: one exception base, one message a problem."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

#: Characters of one problem's line. Names and values in it come from files, and a header may hold names of megabytes.
MOST_CHARACTERS = 2_000
_KEPT_AT_END = 500  # what to do stands at the end


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
