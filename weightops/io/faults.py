"""Problems of a configuration file, gathered with their lines and raised together."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import WeightopsError, at


class Faults:
    """The problems found so far in one file.

    Args:
        where: Name of the file, as it is to appear in front of each line number.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._problems: dict[tuple[int, str], None] = {}

    def add(self, line: int, problem: str) -> None:
        """Note a problem on a line; the same one twice counts once."""
        self._problems[(line, problem)] = None

    def __bool__(self) -> bool:
        return bool(self._problems)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Line and problem of each fault, by line."""
        return iter(sorted(self._problems, key=lambda entry: self.order(entry[0])))

    def problems(self) -> tuple[str, ...]:
        """Everything found, by line, each ``place: what is wrong``."""
        ordered = sorted(self._problems, key=lambda entry: self.order(entry[0]))
        return tuple(at(self.place(line), problem) for line, problem in ordered)

    def order(self, line: int) -> tuple[int, ...]:
        """What problems are sorted by; a subclass may sort its lines otherwise."""
        return (line,)

    def place(self, line: int) -> str:
        """What stands in front of a problem on a line; a subclass may name other places than a file's lines."""
        return f"{self.where}:{line}"

    def raise_any(self) -> None:
        """Raise everything found.

        Raises:
            WeightopsError: with the problems, unless there are none.
        """
        if self._problems:
            raise WeightopsError(*self.problems())
