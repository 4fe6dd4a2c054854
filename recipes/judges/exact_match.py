"""An answer is right if it reads like the gold answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightops.recipes.writing.asks import Verdict, question, question_problems
from weightops.rows.row import Row


@dataclass(frozen=True)
class ExactMatch:
    """Equal to the gold answer, letter case and white space apart."""

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a gold answer."""
        return question_problems(row)

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether the words are the same."""
        yield from ()
        return answer.casefold().split() == question(row).gold.casefold().split()
