"""Rows as token ids, and which of these are to be learned: what objectives over tokens read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import WeightopsError
from ..io.progress import followed, say
from .chat import Tokens, row_tokens
from .row import Row, raise_faults

TokensOf = Callable[[Row], Tokens]
Fields = Callable[[Row, Tokens, TokensOf], Mapping[str, Any]]
"""A row, its tokens, and what makes tokens of other rows, to further fields of it."""


def encode(
    tokenizer: Any,
    rows: Sequence[Row],
    max_tokens: int | None = None,
    *,
    chat: bool = True,
    fields: Fields = lambda row, tokens, tokens_of: {},
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
        fields: Further fields of each row that is left, made from the row and its tokens; it also gets a function that
            makes tokens of any other row as here. All tokens are already cut.
        report: Called with a line about what was cut, and one about what was left out.

    Returns:
        For each row that is left, in order: ``input_ids`` and ``trained`` (whether each of them is to be learned), two
        lists of one length, and the further fields.

    Raises:
        WeightopsError: rows that cannot be used (the first ten faults), or no row is left.
    """

    def tokens_of(row: Row) -> Tokens:
        return row_tokens(tokenizer, row, chat).first(max_tokens)

    faults: list[tuple[str, str]] = []
    encoded: list[dict[str, Any]] = []
    cut = left_out = 0
    for row in followed(rows, "making tokens", unit="row"):
        try:
            whole = row_tokens(tokenizer, row, chat)
            tokens = whole.first(max_tokens)
            if not any(tokens.trained[1:]):
                left_out += 1
                continue
            made = fields(row, tokens, tokens_of)
        except WeightopsError as error:
            faults += [(row.place, problem) for problem in error.problems]
            continue
        cut += len(whole.ids) > len(tokens.ids)
        encoded.append({"input_ids": list(tokens.ids), "trained": list(tokens.trained), **made})
    raise_faults(faults)
    for note in _notes(len(rows), cut, left_out, max_tokens):
        report(note)
    if rows and not encoded:
        limit = "" if max_tokens is None else f" in its first {max_tokens} tokens; allow more"
        raise WeightopsError(f"none of {len(rows)} rows has anything to learn{limit}")
    return encoded


def _notes(rows: int, cut: int, left_out: int, max_tokens: int | None) -> Iterator[str]:
    limit = "" if max_tokens is None else f" in the first {max_tokens} tokens"
    if cut:
        yield f"{cut} of {rows} rows are longer than {max_tokens} tokens and were cut at their end"
    if left_out:
        yield f"{left_out} of {rows} rows have nothing to learn{limit} and were left out"
