"""Rows as token ids, and which of these are to be learned: what objectives over tokens read."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from ..errors import WeightopsError
from ..io.progress import followed
from .chat import Tokens, row_tokens
from .row import Row, raise_faults, short


def say(note: str) -> None:
    """Print a line on standard error without breaking a progress bar."""
    tqdm.write(note, file=sys.stderr)


def encode(
    tokenizer: Any,
    rows: Sequence[Row],
    max_tokens: int | None = None,
    *,
    chat: bool = True,
    columns: Sequence[str] = (),
    report: Callable[[str], object] = say,
) -> list[dict[str, Any]]:
    """Token ids of rows: ``messages``, or else ``prompt`` and ``completion``, or else ``text``.

    Learned are the assistant's turns of messages, the completion of a prompt, all of a text. A row longer than
    ``max_tokens`` is cut at its end, and left out if nothing to learn remains; how many of each is reported.

    Args:
        tokenizer: A fast tokenizer of transformers.
        rows: What to encode.
        max_tokens: Tokens of the longest row; ``None`` for no limit.
        chat: Put a plain prompt and completion through the chat template, where the tokenizer has one.
        columns: Columns of the rows to pass on; see :func:`check_columns`.
        report: Called with a line about what was cut, and one about what was left out.

    Returns:
        For each row that is left, in order: ``input_ids`` and ``trained`` (whether each of them is to be learned), two
        lists of one length, and the columns.

    Raises:
        WeightopsError: rows that cannot be used (the first ten, and how many more), or no row is left.
    """
    faults: list[str] = []
    encoded: list[tuple[Tokens, Row]] = []
    for row in followed(rows, "making tokens", unit="row"):
        try:
            encoded.append((row_tokens(tokenizer, row, chat), row))
        except WeightopsError as error:
            faults += [f"{row.place}: {problem}" for problem in error.problems]
    raise_faults(faults)
    kept = [(tokens, row) for tokens, row in encoded if any(tokens.trained[1:max_tokens])]
    cut = sum(max_tokens is not None and len(tokens.ids) > max_tokens for tokens, _ in kept)
    for note in _notes(len(rows), cut, len(rows) - len(kept), max_tokens):
        report(note)
    if rows and not kept:
        limit = "" if max_tokens is None else f" in its first {max_tokens} tokens; allow more"
        raise WeightopsError(f"none of {len(rows)} rows has anything to learn{limit}")
    return [
        {
            "input_ids": list(tokens.ids[:max_tokens]),
            "trained": list(tokens.trained[:max_tokens]),
            **{name: row.columns[name] for name in columns},
        }
        for tokens, row in kept
    ]


def check_columns(rows: Sequence[Row], columns: Sequence[str], reader: str) -> None:
    """Check the further columns that an objective reads, a weight for instance: each holds a number in every row.

    Args:
        rows: With the columns.
        columns: Their names.
        reader: What reads them, for messages.

    Raises:
        WeightopsError: a column that no row has, or rows without a number (the first ten, and how many more).
    """
    absent = [name for name in columns if all(row.columns.get(name) is None for row in rows)]
    if absent:
        raise WeightopsError(
            f"{reader} reads {', '.join(absent)} of each row, but no row has it; add it to the data, or "
            "choose another objective"
        )
    raise_faults(
        f"{row.place}: {name}: must be a number, which {reader} reads; found {short(row.columns.get(name))}"
        for row in rows
        for name in columns
        if not _is_number(row.columns.get(name))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _notes(rows: int, cut: int, left_out: int, max_tokens: int | None) -> Iterator[str]:
    limit = "" if max_tokens is None else f" in the first {max_tokens} tokens"
    if cut:
        yield f"{cut} of {rows} rows are longer than {max_tokens} tokens and were cut at their end"
    if left_out:
        yield f"{left_out} of {rows} rows have nothing to learn{limit} and were left out"
