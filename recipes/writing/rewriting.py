"""Runs a pass over the rows that a recipe names, and writes what it makes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from weightops.errors import Message, Remedy, WeightopsError
from weightops.io.output_lock import new_output
from weightops.io.replacing import not_replaced
from weightops.recipes.data.source import load_rows
from weightops.recipes.floor.components import kind_of
from weightops.recipes.floor.settings import Data
from weightops.recipes.writing.answer_journal import AnswerJournal
from weightops.recipes.writing.asks import DataPass, Record
from weightops.recipes.writing.pass_run import PassCounts, PassRun
from weightops.rows.row import Row

_ENDING = ".jsonl"


def answers_file(out: Path) -> Path:
    """Where the answers that a pass needed are kept: beside the output."""
    return out.with_name(f"{out.name}.answers.jsonl")


def rewritten(
    data: Data, rewriting: DataPass, out: Path, *, base: str | None = None, limit: int | None = None
) -> tuple[list[Record], PassCounts]:
    """The rows that a pass makes of a recipe's data.

    Args:
        data: Which rows.
        rewriting: The pass.
        out: What the rows are for; answers are kept beside it, and an interrupted run resumes from them.
        base: Model of the recipe, for writers that name none.
        limit: Rows to read; ``None`` for all.

    Returns:
        The records, and what was counted.

    Raises:
        WeightopsError: rows that cannot be read or that the pass cannot use, a writer that fails, or no row is made.
    """
    rows = usable_rows(data, rewriting, limit)
    with AnswerJournal(answers_file(out)) as journal, PassRun(rewriting, journal, base) as run:
        records = list(run.records(rows))
    if not records:
        raise WeightopsError(f"{kind_of(rewriting)} made no row; " + "; ".join(run.counts.lines()))
    return records, run.counts


def usable_rows(data: Data, rewriting: DataPass, limit: int | None = None) -> list[Row]:
    """The rows that a pass would read; nothing is written or asked.

    Raises:
        WeightopsError: rows that cannot be read or that the pass cannot use.
    """
    return load_rows(data, rewriting.problems)[:limit]


def check_rows_place(out: Path) -> None:
    """Raise unless rows can be written to a name: reading them tells the format by its ending."""
    if not out.name.endswith(_ENDING):
        raise WeightopsError(Message(f"{out}: rows are written as JSON Lines", Remedy("end {} in .jsonl", "out")))


def write_rows(records: Iterable[Record], out: Path, *, overwrite: bool = False) -> None:
    """Write records as JSON Lines; the file takes its place when it is whole.

    Raises:
        WeightopsError: the output exists and is not replaced, or cannot be written.
    """
    lines = (json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
    with new_output(out, "rows", overwrite=overwrite, why_not=not_rows) as part:
        part.write_text("".join(lines), encoding="utf-8", errors="replace")


def not_rows(out: Path) -> str | None:
    """The reason why a path may not be replaced by rows; ``None`` if it is a file of rows, or nothing is there."""
    if not os.path.lexists(out):
        return None
    try:
        if stat.S_ISREG(os.lstat(out).st_mode):
            with out.open("rb") as file:
                if file.read(64).lstrip().startswith(b"{"):
                    return None
    except OSError:
        pass
    return not_replaced(out, "it is not a file of rows")
