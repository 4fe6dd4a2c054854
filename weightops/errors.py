"""What goes wrong, said once: one exception base, one message a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class WeightopsError(Exception):
    """Anything the user can act on.

    Each problem is one line: what is wrong, where (file, tensor, key), and what to do. What cannot be printed, a line
    break in a stranger's tensor name for instance, stands in it as an escape.

    >>> print(WeightopsError("a\\nb: unknown dtype"))
    a\\nb: unknown dtype
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(_printable(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def _printable(text: str) -> str:
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
