"""Parts of a text, as the first character and the one after the last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""First character and the one after the last."""


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in rising order, those that touch or overlap as one.

    >>> joined([(0, 2), (2, 3), (5, 6)])
    [(0, 3), (5, 6)]
    """
    wider: list[Span] = []
    for start, end in spans:
        if wider and start <= wider[-1][1]:
            wider[-1] = (wider[-1][0], max(end, wider[-1][1]))
        else:
            wider.append((start, end))
    return wider


def common_beginning(one: Sequence[str], other: Sequence[str]) -> int:
    """How many characters, or lines, two sequences begin with in common.

    >>> common_beginning("search", "season")
    3
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
