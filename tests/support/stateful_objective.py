"""An objective whose loss depends on what it kept from earlier steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.objective import ROW_INDEX, Row


@dataclass(frozen=True)
class Seen(TokenObjective):
    """Cross entropy, each row weighed by 1 + the mean times that the rows have been seen so far."""

    seen: Any = field(default=None, metadata=RUNTIME)

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> "Seen":
        return replace(super().ready(model, tokenizer, rows), seen=torch.zeros(len(rows)))

    def state(self):
        return {"seen": self.seen}

    def batch(self, rows):
        indices = torch.tensor([row.get(ROW_INDEX, -1) for row in rows])
        return {**super().batch(rows), ROW_INDEX: indices}

    def loss(self, model, batch):
        weight = 1 + self.seen.mean()
        if torch.is_grad_enabled():
            self.seen[batch[ROW_INDEX].cpu()] += 1
        return -weight.to(batch[ROW_INDEX].device) * self.log_probabilities(model, batch).sum()
