"""Plain language modelling: the cross entropy of every next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("implemented and tested")


@dataclass(frozen=True)
class NextToken(TokenObjective):
    """Cross entropy of every next token, in fp32: plain language modelling."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        return -self.log_probabilities(model, batch).sum()
