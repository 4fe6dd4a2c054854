"""Plain language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from weightops.guard.prompt import pad_id
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.objective import Batch, Objective, Row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross entropy of every next token, in fp32: plain language modelling.

    Rows have ``input_ids``, and may have ``trained``: whether each of them is to be predicted (the first never is).

    Attributes:
        pad: Token to fill shorter rows with.
    """

    pad: int = field(default=0, metadata=RUNTIME)

    def ready(self, model: Any, tokenizer: Any) -> Objective:
        """With the tokenizer's token to fill rows with."""
        return replace(self, pad=pad_id(tokenizer))

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, both [rows, longest - 1], and ``targets``, the same, -100 for none."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        targets = torch.full((len(rows), width), -100)
        for place, row in enumerate(rows):
            length, own = len(row["input_ids"]), torch.tensor(row["input_ids"])
            trained = torch.tensor(row.get("trained") or [True] * length)
            ids[place, :length], mask[place, :length] = own, 1
            targets[place, :length] = own.where(trained, torch.tensor(-100))
        return {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "targets": targets[:, 1:]}

    def items(self, batch: Batch) -> int:
        """Tokens to predict."""
        return int((batch["targets"] != -100).sum())

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        import torch

        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )
