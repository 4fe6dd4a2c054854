"""An answer is right if its tool call is that of the gold answer, by the reward of TL-Training (arXiv 2412.15495)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from weightops.recipes.data.tool_calls import Call, call_in, parameters_by_tool, reward
from weightops.recipes.writing.asks import Verdict, question, question_problems
from weightops.rows.row import Row


@dataclass(frozen=True)
class ToolCall:
    """The answer calls the tool of the gold answer with the same arguments, or errs less than is allowed.

    Source: TL-Training, arXiv 2412.15495: the reward of its PPO stage, ``reward`` in ``data/tool_calls.py``. PPO itself
    is not here. Ours: that a threshold on the reward accepts an answer; and how a call is found. It is the first one in
    the answer that is written as Python, ``search(q='x')``, or as JSON with ``name`` and ``arguments``.

    Attributes:
        least: The least reward to accept. 1 accepts right calls only, -0.25 also those with wrong values.
        tools: Column with the definitions of all tools of the row.
    """

    least: Annotated[float, Field(ge=-2, le=1)] = 1.0
    tools: str = "tools"

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs the definitions of its tools, and a gold answer that calls one of them."""
        yield from (problems := list(question_problems(row)))
        parameters = parameters_by_tool(row.columns.get(self.tools))
        if parameters is None:
            yield f"{self.tools}: must be a list of definitions, each with name and parameters.properties"
        elif not problems and _faulty(call_in(question(row).gold), parameters):
            yield "the gold answer does not call a listed tool by parameters that it has"

    def accepts(self, row: Row, answer: str) -> Verdict:
        """Whether the reward is high enough."""
        yield from ()
        gold, parameters = call_in(question(row).gold), parameters_by_tool(row.columns[self.tools])
        assert gold is not None  # see problems
        assert parameters is not None
        return reward(call_in(answer), gold, parameters) >= self.least


def _faulty(gold: Call | None, parameters: Mapping[str, Set[str]]) -> bool:
    return gold is None or gold.tool not in parameters or not gold.arguments.keys() <= parameters[gold.tool]
