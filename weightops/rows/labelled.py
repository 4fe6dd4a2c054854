"""Texts to judge, with and without labels: what training a guard, measuring it and scoring read of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import WeightopsError
from .row import Row, raise_faults, short

SAFE, UNSAFE = "safe", "unsafe"


@dataclass(frozen=True)
class LabelledText:
    """A text whose label is known.

    Attributes:
        text: What is judged.
        unsafe: The label of the whole text.
        first_unsafe_char: Index of the character at which it becomes unsafe, if known.
        labels: Labels of its growing parts, if the row has them.
        place: Where it is from, for messages.
    """

    text: str
    unsafe: bool
    first_unsafe_char: int | None = None
    labels: tuple[bool, ...] = ()
    place: str = field(default="", compare=False)


def labelled_texts(rows: Sequence[Row], labels: tuple[str, str] = (SAFE, UNSAFE)) -> list[LabelledText]:
    """The labelled texts of rows. Of a conversation only the last message counts: a guard sees no other.

    Args:
        rows: With ``text`` or ``messages``, ``label``, and perhaps ``first_unsafe_char`` and ``prefix_labels``.
        labels: Two further words for labels, safe then unsafe. The words safe and unsafe, 0 and 1, false and true are
            always labels, and mean what they say unless these two words redefine them.

    Raises:
        WeightopsError: rows that do not have these fields (the first ten faults), by their places.
    """
    meanings = _meanings(labels)
    faults = label_faults(labels)
    raise_faults((row.place, fault) for row in rows for fault in faults(row))
    return [
        LabelledText(
            row.judged or "",
            meanings[row.label],
            row.first_unsafe_char,
            tuple(meanings[part] for part in row.prefix_labels or ()),
            row.place,
        )
        for row in rows
    ]


def label_faults(labels: tuple[str, str] = (SAFE, UNSAFE)) -> Callable[[Row], Iterator[str]]:
    """What is wrong with a row as a labelled text: the ``check`` of :func:`~weightops.rows.reader.read_rows`.

    Args:
        labels: As for :func:`labelled_texts`.
    """
    meanings, words = _meanings(labels), ", ".join(dict.fromkeys((SAFE, UNSAFE, *labels)))
    return lambda row: _faults(row, meanings, words)


def _meanings(labels: tuple[str, str]) -> dict[Any, bool]:
    return {SAFE: False, UNSAFE: True, 0: False, 1: True} | dict(zip(labels, (False, True), strict=True))


def texts(rows: Sequence[Row]) -> list[str]:
    """The text of each row; of a conversation the last message's.

    Raises:
        WeightopsError: rows without a text (the first ten faults), by their places.
    """
    raise_faults((row.place, fault) for row in rows for fault in text_faults(row))
    return [row.judged or "" for row in rows]


def check_both_labels(rows: Sequence[LabelledText]) -> None:
    """Refuse to train on texts that all have one label: a guard cannot learn the difference from them.

    Raises:
        WeightopsError: all texts have the same label.
    """
    if rows and len({row.unsafe for row in rows}) == 1:
        label, other = (UNSAFE, SAFE) if rows[0].unsafe else (SAFE, UNSAFE)
        raise WeightopsError(f"all {len(rows)} rows to train on are labelled {label}; add rows that are {other}")


def text_faults(row: Row) -> Iterator[str]:
    """Why a row does not have a text to judge: the ``check`` of :func:`~weightops.rows.reader.read_rows`."""
    if "text" in row.wrong:
        yield row.wrong["text"]
    elif row.text is None and "messages" in row.wrong:
        yield row.wrong["messages"]
    elif row.judged is None:
        yield "needs text, or messages of which the last has a text"


def _faults(row: Row, meanings: Mapping[Any, bool], words: str) -> Iterator[str]:
    """Everything that is wrong with a row as a labelled text."""
    yield from text_faults(row)
    yield from (row.wrong[name] for name in ("label", "first_unsafe_char", "prefix_labels") if name in row.wrong)
    if "label" not in row.wrong and row.label not in meanings:
        problem = "it is missing" if row.label is None else f"found {short(row.label)}"
        yield f"label: must be {words}, 0, 1, false or true; {problem}"
    for part in row.prefix_labels or ():
        if not isinstance(part, str | int) or part not in meanings:
            yield f"prefix_labels: must be a list of labels ({words}); found {short(part)}"
            return
