"""Autonomous learning: a model asks itself about documents, and keeps what it does not know yet (arXiv 2406.00606).

From the paper: open-book rows (the model writes questions and answers for a document) and closed-book training without
the document. The paper's code for both stages was never published. Ours, therefore: the wording of all requests; that a
closed-book answer is compared with the open-book answer by a judge; and that where it is judged wrong, the open-book
answer is preferred to it. What the model already knows makes no preference row. The document is in no closed-book row.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import Count
from weightops.recipes.writing.asks import (
    Ask,
    AskRefusedError,
    Judge,
    Note,
    Record,
    Steps,
    Write,
    Writer,
    Written,
    verdict,
)
from weightops.rows.row import Row

EVIDENCE = Evidence("in the spirit of", ("2406.00606",), "recipes/autonomous-learning.md")

_ASK = """Read the text. Write {questions} questions that it answers, one on each line, each to be understood without \
the text.

{document}"""
_OPEN = """{document}

Answer from the text above: {question}"""
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):]?)\s*")


@dataclass(frozen=True)
class AutonomousLearning:
    """Questions that a model writes from documents, with its answers.

    Attributes:
        gives: ``rows`` to learn from, with the document (open book) and without (closed book), or ``preferences``: the
            open-book answer chosen, a wrong closed-book answer rejected.
        judge: Says whether the closed-book answer is right, with the open-book answer as gold. For ``preferences``.
        questions: Questions for each document.
        characters: Documents with more are left out.
        writer: Who asks and answers; by default the model that the recipe trains, which is the method.
    """

    gives: Literal["rows", "preferences"] = "rows"
    judge: Annotated[Judge, Component("judges")] = field(
        default_factory=lambda: component("judges", "model_verdict")(component("writers", "local")())
    )
    questions: Count = 3
    characters: Count = 4000
    writer: Annotated[Writer, Component("writers")] = field(default_factory=lambda: component("writers", "local")())

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a document as its text."""
        if not row.text:
            yield row.wrong.get("text", "needs text, the document")

    def rewrite(self, row: Row) -> Steps:
        """Rows for each question that was answered."""
        assert row.text is not None
        if len(row.text) > self.characters:
            yield Note(f"a document longer than {self.characters} characters was left out")
            return []
        asking = _ASK.format(questions=self.questions, document=row.text)
        listed = yield from self._answer(asking)
        records: list[Record] = []
        for question in _questions(listed, self.questions):
            opened = _OPEN.format(document=row.text, question=question)
            answer = yield from self._answer(opened)
            if not answer:
                continue
            if self.gives == "preferences":
                records += yield from self._preference(row, question, answer)
                continue
            records.append({"prompt": opened, "completion": answer, "source": "open book"})
            records.append({"prompt": question, "completion": answer, "source": "closed book"})
        return records

    def _preference(self, row: Row, question: str, answer: str) -> Generator[Ask, Any, list[Record]]:
        closed = yield from self._answer(question)
        if not closed:
            return []
        opened_row = Row.of(row.place, {"prompt": question, "completion": answer})
        known = yield from verdict(self.judge, opened_row, closed)
        if known:
            yield Note("a question was answered right without the document")
        if known is not False:
            return []
        return [{"prompt": question, "chosen": answer, "rejected": closed, "source": "gap"}]

    def _answer(self, prompt: str) -> Generator[Ask, Any, str]:
        """A usable answer, or an empty text."""
        try:
            written: tuple[Written, ...] = yield Write(self.writer, prompt)
        except AskRefusedError as refused:
            yield Note(f"not answered: {refused}")
            return ""
        if not written[0].usable:
            yield Note("an answer was empty or cut off, and left out")
            return ""
        return written[0].text


def _questions(listed: str, most: int) -> list[str]:
    """The lines of a text that end with a question mark, without their numbers; no more than asked for."""
    lines = [_NUMBERING.sub("", line).strip() for line in listed.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.endswith("?")))[:most]
