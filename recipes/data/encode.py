"""Rows as token ids, with which of them are to be learnt: what the objective NextToken reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from weightops.errors import WeightopsError
from weightops.io.progress import followed
from weightops.rows.chat import Tokens, chat_tokens, completion_tokens, text_tokens
from weightops.rows.row import Row, raise_faults


def say(note: str) -> None:
    """A line on standard error, past a progress bar."""
    tqdm.write(note, file=sys.stderr)


def encode(
    tokenizer: Any,
    rows: Sequence[Row],
    max_tokens: int | None = None,
    *,
    chat: bool = True,
    report: Callable[[str], object] = say,
) -> list[dict[str, Any]]:
    """Token ids of rows: ``messages``, or else ``prompt`` and ``completion``, or else ``text``.

    Of messages the assistant's turns are learnt, of a prompt and completion the completion, of a text everything. A row
    that is longer than ``max_tokens`` is cut at its end, and left out where nothing to learn remains; how many of each
    is reported.

    Args:
        tokenizer: Of transformers, fast.
        rows: What to encode.
        max_tokens: Longest row; none for no limit.
        chat: Put a plain prompt and completion through the chat template, where the tokenizer has one.
        report: Is told what was cut and left out.

    Returns:
        For each row that is left ``input_ids`` and ``trained`` (whether each of them is to be learnt), two lists of one
        length, in the order of the rows.

    Raises:
        WeightopsError: every row that cannot be used (the first ten, and how many more), or no row that is left.
    """
    faults: list[str] = []
    encoded: list[Tokens] = []
    for row in followed(rows, "making tokens", unit="row"):
        try:
            encoded.append(_tokens(tokenizer, row, chat))
        except WeightopsError as error:
            faults += [f"{row.place}: {problem}" for problem in error.problems]
    raise_faults(faults)
    kept = [tokens for tokens in encoded if any(tokens.trained[1:max_tokens])]
    cut = sum(max_tokens is not None and len(tokens.ids) > max_tokens for tokens in kept)
    for note in _notes(len(rows), cut, len(rows) - len(kept), max_tokens):
        report(note)
    if rows and not kept:
        raise WeightopsError(f"none of {len(rows)} rows has anything to learn in its first {max_tokens} tokens")
    return [{"input_ids": list(t.ids[:max_tokens]), "trained": list(t.trained[:max_tokens])} for t in kept]


def _tokens(tokenizer: Any, row: Row, chat: bool) -> Tokens:
    if (messages := row.checked("messages")) is not None:
        return chat_tokens(tokenizer, messages)
    if row.completion is not None or "completion" in row.wrong:
        return completion_tokens(tokenizer, row.checked("prompt"), row.checked("completion"), chat)
    if (text := row.checked("text")) is not None:
        return text_tokens(tokenizer, text)
    raise WeightopsError("needs messages, prompt and completion, or text")


def _notes(rows: int, cut: int, left_out: int, most: int | None) -> Iterator[str]:
    limit = "" if most is None else f" in the first {most} tokens"
    if cut:
        yield f"{cut} of {rows} rows are longer than {most} tokens and were cut at their end"
    if left_out:
        yield f"{left_out} of {rows} rows have nothing to learn{limit} and were left out"
