"""What is looked at of a row when it is dispersed: what is asked, what is answered, or both."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from weightops.errors import WeightopsError
from weightops.rows.row import Message, Row, Turns, content_text, lacks_words, raise_faults, well_formed

Field = Literal["output", "instruction", "both"]
"""``output``: the assistant's words, the completion, or a plain text. ``instruction``: all that comes before them."""


def texts_of(rows: Sequence[Row], field: Field) -> list[str]:
    """The text of each row, well formed.

    Raises:
        WeightopsError: every row that has none, or an empty one (the first ten faults), by its place.
    """
    texts: list[str] = []
    faults: list[tuple[str, str]] = []
    for row in rows:
        try:
            text = row_text(row, field)
        except WeightopsError as error:
            faults += [(row.place, problem) for problem in error.problems]
            continue
        if not text.strip():
            faults.append((row.place, f"its {_NAMES[field]} is empty; remove the row, or look at another field"))
        texts.append(text)
    raise_faults(faults)
    return texts


_NAMES = {"output": "output", "instruction": "instruction", "both": "text"}


def row_text(row: Row, field: Field) -> str:
    """The text of one row.

    Raises:
        WeightopsError: a field with a fault, or no such text in this form of row.
    """
    question, answer = _sides(row)
    return well_formed("\n".join(text for text in _wanted(question, answer, field) if text))


def normalised(text: str) -> str:
    """A text without what makes no difference to a reader: case, compatibility forms, blanks.

    >>> normalised("  Hello\\n WORLD ")
    'hello world'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _wanted(question: str, answer: str, field: Field) -> tuple[str, ...]:
    return {"output": (answer,), "instruction": (question,), "both": (question, answer)}[field]


def _sides(row: Row) -> tuple[str, str]:
    """What is asked, and what is answered."""
    if (messages := row.checked("messages")) is not None:
        return _join(messages, answers=False), _join(messages, answers=True)
    if row.completion is not None or "completion" in row.wrong:
        return _plain(row.checked("prompt")), _plain(row.checked("completion"))
    if (text := row.checked("text")) is not None:
        return "", str(text)
    raise WeightopsError(lacks_words(row))


def _join(messages: Sequence[Message], answers: bool) -> str:
    contents = [content_text(turn) for turn in messages if (turn["role"] == "assistant") == answers]
    return "\n".join(text for text in contents if text)


def _plain(turns: Turns) -> str:
    return turns if isinstance(turns, str) else "\n".join(text for turn in turns if (text := content_text(turn)))
