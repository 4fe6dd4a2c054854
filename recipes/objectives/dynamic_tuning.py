"""Dynamic fine-tuning: cross entropy in which each token weighs what the model already thinks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("implemented and tested", ("2508.05629",), "recipes/dynamic-fine-tuning.md")


@dataclass(frozen=True)
class DynamicTuning(TokenObjective):
    """The mean of -p log p over the tokens to predict; the factor p, the token's probability, has no gradient.

    Source: On the Generalization of SFT, arXiv 2508.05629, as TRL's ``loss_type="dft"`` computes it. The gradient is
    that of -p, so ``probability_family`` with power 1 trains alike; only the loss that is shown is another number.
    """

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        log_probability = self.log_probabilities(model, batch)
        return -(log_probability.detach().exp() * log_probability).sum()
