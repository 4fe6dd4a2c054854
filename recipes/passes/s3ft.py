"""S3FT: answers in the model's own words, where a judge accepts them (arXiv 2502.08130); SSR is it without paraphrases.

A model that learns from its own right answers drifts less from what it could do before. From the paper: the starting
model answers each prompt; an answer that the judge accepts becomes the target; otherwise the model paraphrases the gold
answer, which is shown to it; a paraphrase that the judge accepts becomes the target; otherwise the gold answer stays.
Ours, because the paper does not say: the wording of the request to paraphrase, one sample for each prompt, and greedy
decoding unless the writer has a temperature.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.writing.asks import (
    Ask,
    AskRefusedError,
    Judge,
    Note,
    Question,
    Steps,
    Write,
    Writer,
    Written,
    asked,
    question,
    question_problems,
    verdict,
)
from weightops.rows.row import Row, Turns

EVIDENCE = Evidence("implemented and tested", ("2502.08130",), "recipes/s3ft.md")

_PARAPHRASE = """{question}

A correct answer to this is:
{gold}

Answer in your own words, without changing the result."""


@dataclass(frozen=True)
class S3ft:
    """The model's own right answer, else its paraphrase of the gold answer, else the gold answer.

    Attributes:
        judge: Who says whether an answer is right.
        paraphrase: Try a paraphrase before the gold answer stays; false is SSR.
        writer: Who answers; by default the model that the recipe trains, which is the method.
    """

    judge: Annotated[Judge, Component("judges")]
    paraphrase: bool = True
    writer: Annotated[Writer, Component("writers")] = field(default_factory=lambda: component("writers", "local")())

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a question, its answer, and what the judge reads."""
        return dict.fromkeys([*question_problems(row), *self.judge.problems(row)])

    def rewrite(self, row: Row) -> Steps:
        """One row, whose ``source`` is ``self``, ``paraphrase`` or ``gold``."""
        given = question(row)
        prompts = {"self": given.prompt}
        if self.paraphrase:
            prompts["paraphrase"] = _shown(given)
        for source, prompt in prompts.items():
            answer = yield from self._accepted(row, prompt)
            if answer is not None:
                return [{**given.columns, "prompt": given.prompt, "completion": answer, "source": source}]
        return [{**given.columns, "prompt": given.prompt, "completion": given.gold, "source": "gold"}]

    def _accepted(self, row: Row, prompt: Turns) -> Generator[Ask, Any, str | None]:
        """An answer that the judge accepts; ``None`` if there is none. What went wrong is counted."""
        try:
            replies: tuple[Written, ...] = yield Write(self.writer, prompt)
        except AskRefusedError as refused:
            yield Note(f"not answered: {refused}")
            return None
        (reply,) = replies
        if not reply.usable:
            yield Note("an answer was empty" if reply.whole else "an answer was cut off; allow the writer more tokens")
            return None
        accepted = yield from verdict(self.judge, row, reply.text)
        return reply.text if accepted else None


def _shown(given: Question) -> Turns:
    """The prompt with the gold answer in it."""
    text = _PARAPHRASE.format(question=asked(given.prompt), gold=given.gold)
    if isinstance(given.prompt, str):
        return text
    return (*given.prompt[:-1], {**given.prompt[-1], "content": text})
