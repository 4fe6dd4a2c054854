"""Rows as the texts of their tokens, to look at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import WeightopsError
from .chat import row_tokens
from .row import Row

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class ShownToken:
    """A token.

    Attributes:
        text: What it adds to the text of the tokens before it. A character of several tokens is with the last of them.
        learned: Whether training is on it.
    """

    text: str
    learned: bool


def shown_tokens(tokenizer: Any, row: Row, *, chat: bool = True) -> list[ShownToken]:
    """A row's tokens as training reads them. Control characters are shown as U+FFFD, so they cannot move a cursor.

    Args:
        tokenizer: A fast tokenizer of transformers.
        row: With messages, prompt and completion, or text.
        chat: As for :func:`~weightops.rows.chat.row_tokens`.

    Raises:
        WeightopsError: the row cannot be learned from.
    """
    try:
        tokens = row_tokens(tokenizer, row, chat)
    except WeightopsError as error:
        raise WeightopsError(*(f"{row.place}: {problem}" for problem in error.problems)) from None
    pieces: list[ShownToken] = []
    start = 0
    for end, learned in enumerate(tokens.trained, 1):
        text = tokenizer.decode(tokens.ids[start:end], clean_up_tokenization_spaces=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(tokens.ids) and end - start < 8:
            pieces.append(ShownToken("", learned))
            continue
        pieces.append(ShownToken(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), learned))
        start = end
    return pieces
