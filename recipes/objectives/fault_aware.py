"""Fault-aware fine-tuning: where a correct program differs from a similar wrong one, its tokens weigh more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from weightops.errors import WeightopsError
from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch
from weightops.recipes.floor.settings import NotNegativeNumber
from weightops.rows.chat import Tokens
from weightops.rows.encode import TokensOf
from weightops.rows.row import Row as DataRow
from weightops.rows.row import short, well_formed
from weightops.rows.spans import Span, common_beginning, joined

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("in the spirit of", ("2503.16913",), "recipes/fault-aware.md")

TAB = 8
"""Columns between the tab stops of a program, as Python reads it."""
LINE_PAIRS, CHARACTER_PAIRS = 10**6, 4 * 10**6
"""Changed parts whose sizes have a larger product are marked whole, without comparing their lines or characters."""


@dataclass(frozen=True)
class FaultAware(TokenObjective):
    """Cross entropy over a correct program, its tokens weighted where a wrong program differs from it.

    Source: FAIT (later FGIT), arXiv 2503.16913: the marks by lines and by tokens, and that marked tokens weigh more.
    Ours: how the weight is computed, which we have in no text of the paper; that one of the two kinds of marks is
    chosen; and that the sum is divided by the number of tokens, so that a weight of 1 is plain fine-tuning.

    Rows have ``prompt``, ``completion`` (the correct program) and ``incorrect`` (a similar program that fails). Line
    ends and tabs that mean the same are no difference.

    Attributes:
        marks: The ``tokens`` with changed characters, or all tokens of changed ``lines``. A line that only the wrong
            program has marks nothing.
        emphasis: Weight of the marked tokens, all others weigh 1. With ``doubtful``, their largest weight.
        weight: ``constant``, or ``doubtful``: 1 + (emphasis - 1) * (1 - p), so that a marked token weighs less as the
            model learns it. Both are ours. A subclass may override ``weights``.
    """

    marks: Literal["tokens", "lines"] = "tokens"
    emphasis: NotNegativeNumber = 2.0
    weight: Literal["constant", "doubtful"] = "constant"

    reads: ClassVar[tuple[str, ...]] = ("input_ids", "marked")
    columns: ClassVar[tuple[str, ...]] = ("incorrect",)
    per_token: ClassVar[tuple[str, ...]] = ("marked",)

    def problems(self, row: DataRow) -> Iterator[str]:
        """Rows without a wrong program, or whose completion is no text."""
        if not isinstance(row.columns.get("incorrect"), str):
            yield f"incorrect: must be a text, the wrong program; found {short(row.columns.get('incorrect'))}"
        if not isinstance(row.completion, str):
            yield f"completion: must be a text, the correct program; found {short(row.completion)}"

    def fields(self, row: DataRow, tokens: Tokens, tokens_of: TokensOf) -> Mapping[str, Any]:
        """``marked``: whether each token is part of a difference.

        Raises:
            WeightopsError: the chat template has changed the program.
        """
        correct, incorrect = well_formed(str(row.completion)), well_formed(row.columns["incorrect"])
        begin = tokens.text.find(correct.strip(), tokens.learned[0][0])
        if begin < 0:
            raise WeightopsError(
                "the chat template rewrites the completion, so its differences cannot be found in the tokens; "
                "set chat to false"
            )
        shift = begin - (len(correct) - len(correct.lstrip()))
        spans = [(start + shift, end + shift) for start, end in differences(correct, incorrect, self.marks)]
        return {"marked": tokens.covering(spans)}

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        log_probability = self.log_probabilities(model, batch)
        marked = batch["marked"][batch["targets"] != -100].bool()
        return -(self.weights(log_probability.detach(), marked) * log_probability).sum()

    def weights(self, log_probability: Tensor, marked: Tensor) -> Tensor:
        """How much each token weighs; ours.

        Args:
            log_probability: The model's, [tokens], fp32, without a gradient.
            marked: [tokens], bool.

        Returns:
            [tokens], fp32.
        """
        import torch

        more = (self.emphasis - 1) * marked
        return 1 + more * (-torch.expm1(log_probability) if self.weight == "doubtful" else 1)


def differences(correct: str, incorrect: str, marks: Literal["tokens", "lines"]) -> list[Span]:
    """Where the correct program differs from the incorrect one.

    Lines are compared by difflib. With ``tokens``, the characters of changed lines are compared by the least number of
    edits (Levenshtein); where the incorrect program only has more characters, the one before them is marked (ours).

    Returns:
        Characters of ``correct``, each of a part that is changed, in order.

    >>> differences("if a < b:", "if a <= b:", "tokens"), differences("if a < b:", "if a <= b:", "lines")
    ([(5, 6)], [(0, 9)])
    """
    ours, places = _plain(correct)
    theirs, _ = _plain(incorrect)
    our_lines, their_lines = ours.split("\n"), theirs.split("\n")
    starts = [0]
    for line in our_lines:
        starts.append(starts[-1] + len(line) + 1)
    spans: list[Span] = []
    for first, last, their_first, their_last in _changed_lines(our_lines, their_lines):
        start, end = starts[first], starts[last] - 1
        if marks == "lines" or their_first == their_last:
            spans += [(starts[at], starts[at] + len(our_lines[at])) for at in range(first, last)]
        elif first < last:
            other = "\n".join(their_lines[their_first:their_last])
            spans += [(start + at, start + at + 1) for at in _changed_characters(ours[start:end], other)]
    return joined((places[start], places[end - 1] + 1) for start, end in spans if start < end)


def _plain(program: str) -> tuple[str, list[int]]:
    """A program with line feeds and spaces for all line ends and tabs, and the index that each character is from."""
    characters: list[str] = []
    places: list[int] = []
    column = 0
    for place, character in enumerate(program):
        if character == "\r" and program[place + 1 : place + 2] == "\n":
            continue
        written = {"\r": "\n", "\t": " " * (TAB - column % TAB)}.get(character, character)
        column = 0 if written == "\n" else column + len(written)
        characters.append(written)
        places += [place] * len(written)
    return "".join(characters), places


def _changed_lines(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of lines that differ: first and last of ours, first and last of theirs."""
    head = common_beginning(ours, theirs)
    tail = common_beginning(ours[head:][::-1], theirs[head:][::-1])
    middle, their_middle = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    if len(middle) * len(their_middle) > LINE_PAIRS:
        yield head, head + len(middle), head, head + len(their_middle)
        return
    for kind, *ends in SequenceMatcher(None, middle, their_middle, autojunk=False).get_opcodes():
        if kind != "equal":
            first, last, their_first, their_last = (head + end for end in ends)
            yield first, last, their_first, their_last


def _changed_characters(ours: str, theirs: str) -> list[int]:
    """Indices of the characters of ours that the fewest edits to theirs replace, leave out, or add others behind."""
    import numpy as np

    head = common_beginning(ours, theirs)
    tail = common_beginning(ours[head:][::-1], theirs[head:][::-1])
    middle, other = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    if len(middle) * len(other) > CHARACTER_PAIRS:
        return list(range(head, head + len(middle)))
    columns = np.arange(len(other) + 1)
    wanted = np.array([ord(character) for character in other], dtype=np.int64)
    rows = [columns]
    for number, character in enumerate(middle, 1):
        before = rows[-1]
        cheapest = np.minimum(before[1:] + 1, before[:-1] + (wanted != ord(character)))
        rows.append(np.minimum.accumulate(np.concatenate([[number], cheapest]) - columns) + columns)
    return sorted(set(_traced(rows, middle, other, head, ours)))


def _traced(rows: Sequence[Any], middle: str, other: str, head: int, ours: str) -> Iterator[int]:
    """The changed characters along a cheapest way back through a table of edit distances, by their index in ours."""
    at, their_at = len(middle), len(other)
    while at or their_at:
        cost = rows[at][their_at]
        if at and their_at and cost == rows[at - 1][their_at - 1] + (middle[at - 1] != other[their_at - 1]):
            at, their_at = at - 1, their_at - 1
            if middle[at] != other[their_at]:
                yield head + at
        elif at and cost == rows[at - 1][their_at] + 1:
            at -= 1
            yield head + at
        else:  # a character that only theirs has
            their_at -= 1
            behind = head + at
            if behind and ours[behind - 1] != "\n":
                yield behind - 1
            elif behind < len(ours):
                yield behind
