"""A language model says whether an answer is right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from weightops.recipes.floor.components import Component
from weightops.recipes.writing.asks import (
    AskRefusedError,
    Verdict,
    Write,
    Writer,
    asked,
    question,
    question_problems,
)
from weightops.rows.row import Row

_INSTRUCTION = """Question:
{question}

Reference answer:
{gold}

Proposed answer:
{answer}

Does the proposed answer say the same as the reference answer where the question is concerned? Reply with one word, \
yes or no."""
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)


@dataclass(frozen=True)
class ModelVerdict:
    """Asks a model to compare the answer with the gold answer. The question put to it is ours.

    Attributes:
        writer: Who judges. A model that replies neither yes nor no has not judged.
    """

    writer: Annotated[Writer, Component("writers")]

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a gold answer."""
        return question_problems(row)

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether the model's first word is yes."""
        given = question(row)
        text = _INSTRUCTION.format(question=asked(given.prompt), gold=given.gold, answer=answer)
        (reply,) = yield Write(self.writer, text)
        word = (_WORD.findall(reply.text) or [""])[0].lower()
        if word not in ("yes", "no"):
            raise AskRefusedError("the judge replied neither yes nor no")
        return bool(word == "yes")
