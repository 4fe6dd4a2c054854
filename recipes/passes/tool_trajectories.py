"""Tool trajectories without the steps that failed: the mitigation of adverse effects of TL-Training (arXiv 2412.15495).

From the paper's code: each of the assistant's turns becomes a row of its own, with what came before as context; a turn
is dropped if the tool's answer to it reports an error, told by phrases that are compared in lower case, letters and
digits only. Ours: the list of phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.writing.asks import Note, Record, Steps
from weightops.rows.row import Message, Row, content_text

EVIDENCE = Evidence("implemented and tested", ("2412.15495",), "recipes/tool-trajectories.md")

PHRASES = (
    *("error", "exception", "traceback", "invalid", "not found", "failed to", "unable to", "missing required"),
    *("unexpected keyword", "permission denied", "unauthorized", "timed out", "bad request", "no such"),
)
_KEPT = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class ToolTrajectories:
    """The assistant's turns whose tool calls did not fail, each as a row.

    Attributes:
        phrases: What a tool's answer contains if the call failed. With none, every turn is kept.
        tool_roles: Roles of the turns that hold a tool's answer.
    """

    phrases: tuple[str, ...] = PHRASES
    tool_roles: tuple[str, ...] = ("tool", "function", "observation", "ipython")

    def problems(self, row: Row) -> Iterable[str]:
        """The row needs a conversation."""
        if row.messages is None:
            yield row.wrong.get("messages", "needs messages")

    def rewrite(self, row: Row) -> Steps:
        """A row for each turn that is kept: the conversation as prompt, the turn as completion."""
        turns = row.messages or ()
        records: list[Record] = []
        for place, turn in enumerate(turns):
            if turn["role"] != "assistant" or not place:
                continue
            if self._failed(turns[place + 1 :]):
                yield Note("a turn whose tool call failed was dropped")
                continue
            columns = {name: value for name, value in row.columns.items() if name == "tools"}
            records.append({**columns, "prompt": list(turns[:place]), "completion": [dict(turn)]})
        return records

    def _failed(self, after: Iterable[Message]) -> bool:
        """Whether one of the tool's answers that follow at once reports an error."""
        for turn in after:
            if turn["role"] not in self.tool_roles:
                return False
            text = squeezed(content_text(turn) or "")
            if any(squeezed(phrase) in text for phrase in self.phrases):
                return True
        return False


def squeezed(text: str) -> str:
    """A text in lower case, its letters and digits only.

    >>> squeezed("Not Found!")
    'notfound'
    """
    return _KEPT.sub("", text.lower())
