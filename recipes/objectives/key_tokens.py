"""Key-token weighting (TL-Training): the tokens that decide which tool is called weigh more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.data.tool_calls import tool_name
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch
from weightops.rows.chat import Tokens
from weightops.rows.encode import TokensOf
from weightops.rows.row import Row as DataRow
from weightops.rows.row import short
from weightops.rows.spans import Span, common_beginning

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("measured here", ("2412.15495",), "recipes/key-tokens.md")


@dataclass(frozen=True)
class KeyTokens(TokenObjective):
    """Cross entropy in which the tokens that tell a tool's name from those of other tools weigh more.

    Source: TL-Training, arXiv 2412.15495, "prioritising key tokens": K is the first token of the name, and for each
    other tool whose name begins alike the first token after the common beginning. Its weight is min(rest / K, cap) in
    numbers of learned tokens, and 1 where K is not the smaller part. The loss is divided by the sum of the weights.
    Ours: tokens are found by their characters, with any tokenizer; tokens that end a parameter are not told apart from
    the rest (the paper's code leaves them out of the quotient and gives them weight 1); all samples of a step share the
    divisor, where the paper has one sample in a batch.

    Rows have ``tool``: the name that the answer calls, a list of names in the order of the calls, or null for none; and
    ``tools``: names of all tools of the row, or their definitions.

    Attributes:
        cap: Largest weight of a key token; 1 is plain fine-tuning.
        opening: Text right before a name in an answer, such as ``Action:``. Without it, the first place counts where
            the name is a word of its own.
    """

    cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 9.0
    opening: str = ""

    reads: ClassVar[tuple[str, ...]] = ("input_ids", "token_weights")
    columns: ClassVar[tuple[str, ...]] = ("tool", "tools")
    per_token: ClassVar[tuple[str, ...]] = ("token_weights",)

    def problems(self, row: DataRow) -> Iterator[str]:
        """Names or tools in another form, and calls of a tool that the row does not list."""
        called, listed = _called(row.columns.get("tool")), _listed(row.columns.get("tools"))
        if called is None:
            yield f"tool: must be a name, a list of names, or null; found {short(row.columns.get('tool'))}"
        if listed is None:
            yield f"tools: must be a list of names or definitions; found {short(row.columns.get('tools'))}"
        for name in called or ():
            if listed is not None and name not in listed:
                yield f"tool: {short(name)} is not one of the row's tools"

    def fields(self, row: DataRow, tokens: Tokens, tokens_of: TokensOf) -> Mapping[str, Any]:
        """``token_weights``: the weight of each token.

        Raises:
            WeightopsError: a name that is called is not in the answer.
        """
        listed = _listed(row.columns["tools"]) or []
        spans = list(self._key_spans(tokens, _called(row.columns["tool"]) or [], listed))
        keys = tokens.covering(spans)
        predicted = range(1, len(tokens.ids))
        count = sum(keys[at] for at in predicted)
        rest = sum(tokens.trained[at] for at in predicted) - count
        weight = min(rest / count, self.cap) if 0 < count < rest else 1.0
        return {"token_weights": [weight if key else 1.0 for key in keys]}

    def items(self, batch: Batch) -> float:
        """The sum of the weights."""
        return float(batch["token_weights"][batch["targets"] != -100].sum())

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        weights = batch["token_weights"][batch["targets"] != -100]
        return -(weights * self.log_probabilities(model, batch)).sum()

    def _key_spans(self, tokens: Tokens, called: Sequence[str], listed: Sequence[str]) -> Iterator[Span]:
        """The characters, one in each span, whose tokens are key tokens."""
        *turns, (last, _) = tokens.learned
        turns.append((last, len(tokens.text)))  # what was cut off is searched too: a call there is no fault
        begin = 0
        for name in called:
            opening = rf"{re.escape(self.opening)}\s*" if self.opening else r"(?<!\w)"
            called_here = re.compile(rf"{opening}({re.escape(name)})(?!\w)")
            places = (called_here.search(tokens.text, max(start, begin), end) for start, end in turns)
            place = next(filter(None, places), None)
            if place is None:
                raise WeightopsError(f"tool: the answer does not call {short(name)}; correct the column or the answer")
            begin = place.end()
            for at in key_characters(name, listed):
                yield place.start(1) + at, place.start(1) + at + 1


def key_characters(name: str, tools: Sequence[str]) -> list[int]:
    """The characters of an answer, counted from the start of a tool's name, that decide for this tool.

    >>> key_characters("search_web", ["search_web", "search_maps", "weather", "search_web_pages"])
    [0, 7, 10]
    """
    shared = {common_beginning(name, other) for other in tools if other != name}
    return sorted({0, *shared})


def _called(tool: object) -> list[str] | None:
    """The names that an answer calls; ``None`` if the column holds something else."""
    names = [] if tool is None else [tool] if isinstance(tool, str) else tool
    sound = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return names if sound else None  # type: ignore[return-value]


def _listed(tools: object) -> list[str] | None:
    """The names of a row's tools; ``None`` if the column holds something else."""
    if not isinstance(tools, list):
        return None
    names = [tool_name(tool) for tool in tools]
    return names if all(isinstance(name, str) for name in names) else None  # type: ignore[return-value]
