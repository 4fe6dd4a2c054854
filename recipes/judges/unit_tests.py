"""An answer is right if its program passes the row's unit tests, as in MBPP. Programs run in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from weightops.recipes.floor.settings import Count
from weightops.recipes.writing.asks import Note, RunProgram, Verdict
from weightops.rows.row import Row

_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class UnitTests:
    """The answer's program, with the row's tests after it, runs to its end.

    The program is the text in the answer's code fences; without fences it is the whole answer.

    Attributes:
        tests: Column with the tests: Python statements, one text or a list.
        setup: Column with statements to run first, such as imports; may be missing.
        seconds: When a program is stopped.
        megabytes: Memory that a program may use.
    """

    tests: str = "test_list"
    setup: str = "test_setup_code"
    seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    megabytes: Count = 512

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs tests."""
        if not _statements(row.columns.get(self.tests)):
            yield f"{self.tests}: must be a text or a list of texts, the unit tests"

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether all tests pass."""
        parts = [_statements(row.columns.get(self.setup)), program_of(answer), _statements(row.columns[self.tests])]
        ran = yield RunProgram("\n".join(parts), self.seconds, self.megabytes)
        if ran.ended in ("too slow", "too much output"):
            yield Note(f"a program was stopped: {ran.ended}")
        return bool(ran.passed)


def program_of(answer: str) -> str:
    """The program in an answer.

    >>> program_of("Here: ```python\\nx = 1\\n```")
    'x = 1\\n'
    """
    return "\n".join(_FENCED.findall(answer)) or answer


def _statements(tests: object) -> str:
    if isinstance(tests, list) and all(isinstance(each, str) for each in tests):
        return "\n".join(tests)
    return tests if isinstance(tests, str) else ""
