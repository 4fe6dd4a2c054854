"""Prefix SFT: the prefixes of a text, labelled as a guard should judge them as the text arrives (arXiv 2509.23381).

From the paper: prefixes grow by 100 characters; labels go from safe to unsafe once and never back; rows that go back to
safe are left out. The paper does not say how to find the first unsafe prefix. Ours: the row gives it
(``first_unsafe_char``), or else a teacher guard's first crossing of its threshold does; where neither does, only the
whole text is used, because its label is known. A prefix is unsafe once it holds the first unsafe character.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from weightops.rows.labelled import LabelledText

_MARK = re.compile("[\u0300-\u036f\ufe00-\ufe0f\u200d\U0001f3fb-\U0001f3ff\u20d0-\u20ff\U000e0020-\U000e007f]")
"""Characters that belong to the one before them: accents, variation selectors, joiners, skin tones, tags."""

FirstUnsafe = Callable[[str], int | None]
"""From a text to the index of the character at which it becomes unsafe; ``None`` if that is unknown."""


def corrects_itself(row: LabelledText) -> bool:
    """Whether a text is labelled unsafe and later safe, or is safe but has a first unsafe character."""
    parts = (*row.labels, row.unsafe)
    unsafe_once = row.first_unsafe_char is not None and not row.unsafe
    return unsafe_once or any(before and not after for before, after in itertools.pairwise(parts))


def prefixes(
    rows: Sequence[LabelledText], step: int = 100, first_unsafe: FirstUnsafe = lambda text: None
) -> list[tuple[str, bool]]:
    """Every prefix of every row that does not correct itself, with whether it is unsafe.

    Args:
        rows: Labelled texts.
        step: Characters between prefixes; 0 for the whole text only.
        first_unsafe: Called for unsafe texts whose row does not give the first unsafe character.
    """
    return [pair for row in rows if not corrects_itself(row) for pair in _labelled(row, step, first_unsafe)]


def _labelled(row: LabelledText, step: int, first_unsafe: FirstUnsafe) -> Iterator[tuple[str, bool]]:
    onset = row.first_unsafe_char
    if row.unsafe and onset is None and step:
        onset = first_unsafe(row.text)
    if not step or (row.unsafe and onset is None):
        yield row.text, row.unsafe
        return
    for end in cuts(row.text, step):
        yield row.text[:end], row.unsafe and (end == len(row.text) or (onset is not None and end > onset))


def cuts(text: str, step: int) -> list[int]:
    """Where prefixes end: every ``step`` characters and at the end, never inside what is read as one character.

    A cut before a combining mark, a variation selector, the rest of a joined or toned emoji, or the second half of a
    surrogate pair or of CR LF moves past it.

    >>> cuts("abcdefg", 3)
    [3, 6, 7]
    """
    ends = {_whole(text, end) for end in range(step, len(text), step)}
    return sorted({*ends, len(text)})


def _whole(text: str, end: int) -> int:
    while end < len(text) and _inside(text[end - 1], text[end]):
        end += 1
    return end


def _inside(before: str, after: str) -> bool:
    pair = "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff"
    return pair or before + after == "\r\n" or before == "\u200d" or bool(_MARK.match(after))
