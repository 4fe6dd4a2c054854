"""Critique fine-tuning: a model learns to criticise a doubtful answer, and answers better for it (arXiv 2501.17703).

From the paper: the prompt holds the question and the answer, in the frame of the released data; the critique is learned
and nothing else. Ours: the sentence that asks for a critique, and the request to a teacher where the data has no
critique.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from weightops.recipes.floor.components import Component
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.writing.asks import AskRefusedError, Note, Steps, Write, Writer, asked
from weightops.rows.row import Row

EVIDENCE = Evidence("implemented and tested", ("2501.17703",), "recipes/critique.md")

FRAME = """Criticise the solution below: say which steps are right, which are wrong and why, and give a verdict.

Question:
{question}

Solution:
{solution}"""
_TEACHER = (
    FRAME
    + """

End with a line that reads "Conclusion: right" or "Conclusion: wrong"."""
)


@dataclass(frozen=True)
class Critique:
    """Rows of a question, an answer and a critique, as rows that teach the critique.

    Attributes:
        solution: Column with the answer to criticise.
        critique: Column with the critique.
        writer: A teacher that writes the critiques that rows do not have; by default every row needs one.
    """

    solution: str = "response"
    critique: str = "critique"
    writer: Annotated[Writer | None, Component("writers")] = None

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a question, an answer, and a critique unless there is a teacher."""
        if row.prompt is None:
            yield row.wrong.get("prompt", "needs prompt")
        if not isinstance(row.columns.get(self.solution), str):
            yield f"{self.solution}: must be a text, the answer to criticise"
        if self.writer is None and not isinstance(row.columns.get(self.critique), str):
            yield f"{self.critique}: must be a text; or name a writer that criticises"

    def rewrite(self, row: Row) -> Steps:
        """One row, or none if the teacher's critique is empty or cut off."""
        assert row.prompt is not None
        parts = {"question": asked(row.prompt), "solution": row.columns[self.solution]}
        critique, source = row.columns.get(self.critique), "data"
        if not isinstance(critique, str):
            assert self.writer is not None
            try:
                (reply,) = yield Write(self.writer, _TEACHER.format(**parts))
            except AskRefusedError as refused:
                yield Note(f"no critique: {refused}")
                return []
            if not reply.usable:
                yield Note("a critique was empty or cut off; its row was left out")
                return []
            critique, source = reply.text, "teacher"
        return [{"prompt": FRAME.format(**parts), "completion": critique, "source": source}]
