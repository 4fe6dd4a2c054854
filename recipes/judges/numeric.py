"""An answer is right if its last number is that of the gold answer, as in GSM8K."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from weightops.recipes.writing.asks import Verdict, question, question_problems
from weightops.rows.row import Row

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_DIGITS = 40


@dataclass(frozen=True)
class Numeric:
    """The last number of the answer equals the last of the gold answer; 1,000 is 1000.0."""

    def problems(self, row: Row) -> Iterable[str]:
        """The gold answer needs a number."""
        yield from (problems := list(question_problems(row)))
        if not problems and last_number(question(row).gold) is None:
            yield "the gold answer has no number to compare with"

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether the numbers are equal."""
        yield from ()
        number = last_number(answer)
        return number is not None and number == last_number(question(row).gold)


def last_number(text: str) -> Decimal | None:
    """The last number in a text; ``None`` if it has none.

    >>> last_number("He has 3 + 4 = 7 apples. #### 1,007.0")
    Decimal('1007.0')
    """
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers and len(numbers[-1]) <= _DIGITS else None
