"""Problems of a configuration file, gathered with their lines and raised together."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import WeightopsError


class Faults:
    """The problems found so far in one file.

    Args:
        where: Name of the file, as it is to appear in front of each line number.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._found: dict[tuple[int, str], None] = {}

    def add(self, line: int, problem: str) -> None:
        """Note a problem on a line; the same one twice counts once."""
        self._found[(line, problem)] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Line and problem of each fault, by line."""
        return iter(sorted(self._found, key=lambda found: found[0]))

    def problems(self) -> tuple[str, ...]:
        """Everything found, by line, each ``file:line: what is wrong``."""
        return tuple(f"{self.where}:{line}: {problem}" for line, problem in self)

    def raise_any(self) -> None:
        """Raise everything found.

        Raises:
            WeightopsError: with the problems, unless there are none.
        """
        if self._found:
            raise WeightopsError(*self.problems())
