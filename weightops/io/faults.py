"""Collects the problems of a configuration file with their line numbers, to raise them together."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import WeightopsError, at


class Faults:
    """The problems found so far in one file.

    Args:
        where: Name of the file, as messages show it before the line number.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._problems: dict[tuple[int, str], None] = {}

    def add(self, line: int, problem: str) -> None:
        """Add a problem on a line; the same problem is kept only once."""
        self._problems[(line, problem)] = None

    def ignored(self, line: int, what: str) -> None:
        """Add something that the file says without effect: a problem here, but a subclass may only note it."""
        self.add(line, what)

    def __bool__(self) -> bool:
        return bool(self._problems)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Line and text of each problem, sorted by line."""
        return iter(sorted(self._problems, key=lambda entry: self.order(entry[0])))

    def problems(self) -> tuple[str, ...]:
        """All problems, sorted by line, each as ``place: what is wrong``."""
        ordered = sorted(self._problems, key=lambda entry: self.order(entry[0]))
        return tuple(at(self.place(line), problem) for line, problem in ordered)

    def order(self, line: int) -> tuple[int, ...]:
        """The sort key of a line; a subclass may sort its lines differently."""
        return (line,)

    def place(self, line: int) -> str:
        """The place that a message names before the problem; a subclass may name something other than file and line."""
        return f"{self.where}:{line}"

    def raise_any(self) -> None:
        """Raise all problems, if there are any.

        Raises:
            WeightopsError: there is at least one problem.
        """
        if self._problems:
            raise WeightopsError(*self.problems())
