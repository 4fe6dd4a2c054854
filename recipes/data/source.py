"""The rows that a recipe names, and the rows that it holds out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from weightops.errors import WeightopsError
from weightops.recipes.floor.components import kind_of
from weightops.recipes.floor.objective import Objective, columns_of
from weightops.recipes.floor.settings import Data
from weightops.rows.chat import unlearnable
from weightops.rows.reader import read_rows
from weightops.rows.row import Row, raise_faults

T = TypeVar("T")


def load_rows(data: Data, check: Callable[[Row], Iterable[str]] = lambda row: ()) -> list[Row]:
    """The rows that a recipe names, with renamed fields, in the order of the files.

    Args:
        data: Which rows.
        check: What is wrong with a row, to be reported together with the lines that cannot be read.

    Raises:
        WeightopsError: everything that cannot be read or is wrong, or no row is left.
    """
    return read_rows(
        data.files, hub=data.hub, subset=data.subset, split=data.split, only=data.only, rename=data.rename, check=check
    )


def rows_to_learn(data: Data, objective: Objective) -> list[Row]:
    """The rows that a recipe names, each of which can be learned by an objective.

    Raises:
        WeightopsError: as :func:`load_rows` and :func:`check_columns`.
    """
    rows = load_rows(data, unlearnable)
    check_columns(rows, objective)
    return rows


def check_columns(rows: Sequence[Row], objective: Objective) -> None:
    """Check what an objective reads of rows besides their words.

    Raises:
        WeightopsError: a column that no row has; or every row with a problem, those of the same problem in one line.
    """
    reader = f"objective {kind_of(objective)}"
    absent = [name for name in columns_of(objective) if all(row.columns.get(name) is None for row in rows)]
    if absent:
        raise WeightopsError(
            f"{reader} reads {', '.join(absent)} of each row, but no row has it; add it to the data, or "
            "choose another objective"
        )
    problems = ((row.place, f"{problem} ({reader} reads it)") for row in rows for problem in objective.problems(row))
    raise_faults(problems, "faults")


def split(rows: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Rows to train on, and rows to hold out: a share drawn by the seed. Both keep their order.

    >>> split([0, 1, 2, 3], 0.5, seed=1)
    ([1, 2], [0, 3])
    """
    held = set(random.Random(f"{seed}/held out").sample(range(len(rows)), round(share * len(rows))))
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]
