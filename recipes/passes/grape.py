"""GRAPE: of several answers to a prompt, the one that the base model finds most probable (arXiv 2502.04194).

From the paper: the score is the mean log-probability of the answer's tokens given the prompt, under the model before
training; the best one is learned. Ours: the end token counts as a token of the answer, and of equal answers the first
wins. The paper warns that pools which a model wrote itself, unfiltered, hurt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import Count
from weightops.recipes.writing.asks import AskRefusedError, Note, Rate, Record, Steps, Writer
from weightops.rows.row import Row

EVIDENCE = Evidence("measured here", ("2502.04194",), "recipes/grape.md")

_FRAME = "Question: {} \n Answer: "


@dataclass(frozen=True)
class Grape:
    """The most probable of a row's answers.

    Attributes:
        responses: Column with the answers: a list of texts, or of ``{text, source}``.
        keep: How many of the most probable to keep.
        frame: How the prompt is written for scoring: the model's ``chat`` template, or the paper's ``question`` frame.
        writer: The model that scores; by default the one that the recipe trains, which is the method.
    """

    responses: str = "responses"
    keep: Count = 1
    frame: Literal["chat", "question"] = "chat"
    writer: Annotated[Writer, Component("writers")] = field(default_factory=lambda: component("writers", "local")())

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a prompt and answers."""
        if row.prompt is None:
            yield row.wrong.get("prompt", "needs prompt")
        elif self.frame == "question" and not isinstance(row.prompt, str):
            yield "prompt: must be a text for the frame question"
        if not _candidates(row.columns.get(self.responses)):
            yield f"{self.responses}: must be a list of answers, each a text or {{text, source}}"

    def rewrite(self, row: Row) -> Steps:
        """The best answers, each with its ``score``: the mean log-probability of its tokens."""
        scored: list[tuple[float, int, Record]] = []
        for number, record in enumerate(_candidates(row.columns[self.responses])):
            try:
                score: float = yield self._ask(row, record["completion"])
            except AskRefusedError as refused:
                yield Note(f"an answer was not scored: {refused}")
                continue
            scored.append((-score, number, {"prompt": row.prompt, **record, "score": score}))
        return [record for *_, record in sorted(scored, key=lambda each: each[:2])[: self.keep]]

    def _ask(self, row: Row, answer: str) -> Rate:
        assert row.prompt is not None
        if self.frame == "chat":
            return Rate(self.writer, row.prompt, answer)
        return Rate(self.writer, _FRAME.format(row.prompt), answer, chat=False)


def _candidates(responses: Any) -> list[Record]:
    """The answers of a column as ``completion`` and, where given, ``source``; none if the column is anything else."""
    if not isinstance(responses, list):
        return []
    records = [{"completion": each} if isinstance(each, str) else _named(each) for each in responses]
    return [record for record in records if record] if all(records) else []


def _named(response: Any) -> Record:
    if not isinstance(response, dict) or not isinstance(response.get("text"), str):
        return {}
    source = response.get("source")
    return {"completion": response["text"]} | ({"source": source} if isinstance(source, str) else {})
