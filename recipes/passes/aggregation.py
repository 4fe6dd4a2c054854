"""Aggregation fine-tuning: a model learns to make one good answer out of several proposals (arXiv 2501.11877).

From the paper: the loss is on the aggregation alone, with query and proposals in context. Inference, as in the authors'
code: a layer of samples, then layers of aggregations, each of which sees all outputs of the layer before, and at last
one aggregation. Ours: the wording of the instruction, and that rows without proposals get them from the model itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import Count
from weightops.recipes.writing.asks import Ask, AskRefusedError, Note, Steps, Write, Writer, Written, asked
from weightops.rows.row import Message, Row, Turns

EVIDENCE = Evidence("implemented and tested", ("2501.11877",), "recipes/aggregation.md")

_INSTRUCTION = """Several answers to the user's request are given below. Some may be wrong or incomplete. Write one \
answer that keeps what is right in them, mends what is wrong, and does not mention them.

{proposals}"""


@dataclass(frozen=True)
class Aggregation:
    """Rows that teach to aggregate proposals, or answers made by proposing and aggregating.

    Attributes:
        gives: ``rows`` to learn from: instruction and proposals, query, aggregation. ``answers``: each prompt with what
            the writer answers by proposing and aggregating.
        proposals: Column with a list of proposals. Rows without it get ``samples`` proposals from the writer.
        samples: Proposals, and aggregations in each hidden layer.
        aggregations: Layers of aggregation, the last of which writes one answer; for ``answers``.
        writer: Who proposes and aggregates; by default the model that the recipe trains, at temperature 0.7.
    """

    gives: Literal["rows", "answers"] = "rows"
    proposals: str = "proposals"
    samples: Count = 5
    aggregations: Count = 2
    writer: Annotated[Writer, Component("writers")] = field(
        default_factory=lambda: component("writers", "local")(temperature=0.7, top_p=0.95)
    )

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a prompt; to learn from, also the aggregation as its completion."""
        if row.prompt is None:
            yield row.wrong.get("prompt", "needs prompt")
        proposals = row.columns.get(self.proposals)
        if proposals is not None and not (isinstance(proposals, list) and all(isinstance(p, str) for p in proposals)):
            yield f"{self.proposals}: must be a list of texts"
        if self.gives == "rows" and not isinstance(row.completion, str):
            yield row.wrong.get("completion", "needs completion, the aggregation (a text)")

    def rewrite(self, row: Row) -> Steps:
        """One row; none if nothing usable was written."""
        assert row.prompt is not None
        try:
            if self.gives == "answers":
                answer = yield from propose_and_aggregate(self.writer, row.prompt, self.samples, self.aggregations)
                return [] if answer is None else [{"prompt": row.prompt, "completion": answer, "source": "aggregated"}]
            proposals, source = row.columns.get(self.proposals), "data"
            if proposals is None:
                proposals, source = (yield from _usable(Write(self.writer, row.prompt, self.samples))), "sampled"
        except AskRefusedError as refused:
            yield Note(f"not answered: {refused}")
            return []
        turns = (*aggregation_prompt(row.prompt, proposals), {"role": "assistant", "content": row.completion})
        return [{"messages": list(turns), "source": source}]


def propose_and_aggregate(
    writer: Writer, prompt: Turns, samples: int, aggregations: int
) -> Generator[Ask, Any, str | None]:
    """One answer out of many: ``samples + samples * (aggregations - 1) + 1`` are written.

    Args:
        writer: Who writes. The last answer is written with ``top_p`` 1, as in the authors' code.
        prompt: The query.
        samples: Answers in each layer but the last.
        aggregations: Layers after the first.

    Returns:
        The answer; ``None`` if a layer wrote nothing usable.
    """
    proposals = yield from _usable(Write(writer, prompt, samples))
    for layer in range(1, aggregations + 1):
        if not proposals:
            return None
        last = layer == aggregations
        by: Any = replace(writer, top_p=1.0) if last else writer  # type: ignore[type-var]
        proposals = yield from _usable(Write(by, aggregation_prompt(prompt, proposals), 1 if last else samples))
    return proposals[0] if proposals else None


def aggregation_prompt(prompt: Turns, proposals: Sequence[str]) -> tuple[Message, ...]:
    """The conversation that asks for an aggregation: the numbered proposals as the system's words, then the query.

    Without proposals it is the query alone.
    """
    query = {"role": "user", "content": asked(prompt)}
    if not proposals:
        return (query,)
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(proposals, 1))
    return {"role": "system", "content": _INSTRUCTION.format(proposals=listed)}, query


def _usable(ask: Write) -> Generator[Ask, Any, list[str]]:
    written: tuple[Written, ...] = yield ask
    usable = [each.text for each in written if each.usable]
    if len(usable) < len(written):
        yield Note("answers were empty or cut off, and left out")
    return usable
