"""Beyond log likelihood: the loss is a power of the right token's probability, perhaps only above or below a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch
from weightops.recipes.floor.settings import NotNegativeNumber, Probability

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("implemented and tested", ("2510.00526",), "recipes/beyond-log-likelihood.md")


@dataclass(frozen=True)
class ProbabilityFamily(TokenObjective):
    """The mean of (1 - p^a) / a over the tokens to predict, p being the model's probability of the token.

    Source: Beyond Log Likelihood, arXiv 2510.00526. a = 1 is the paper's -p, and a = 0 its limit, -log p, which is
    plain fine-tuning. With ``keep``, only tokens whose probability is above or below a limit count, and the mean is
    over these tokens. The paper has this for a = 0 and a = 1; other powers are ours. The mean is over all kept tokens
    of a step, where the paper's code averages the means of micro-batches.

    Attributes:
        power: a: the larger it is, the less a token counts that the model finds improbable. 0 is plain fine-tuning.
        keep: ``all`` tokens, only those whose probability is at least the threshold (``above``), or at most
            (``below``).
        threshold: That probability. The paper's code has no default; 0.2 is the value that summaries of it report.
    """

    power: NotNegativeNumber = 1.0
    keep: Literal["all", "above", "below"] = "all"
    threshold: Probability = 0.2

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens that are kept."""
        return self.loss_and_items(model, batch)[0]

    def loss_and_items(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The sum over the tokens that are kept, and, unless all are, their number."""
        log_probability = self.log_probabilities(model, batch)
        costs = power_cost(log_probability, self.power)
        if self.keep == "all":
            return costs.sum(), None
        probability = log_probability.detach().exp()
        kept = probability >= self.threshold if self.keep == "above" else probability <= self.threshold
        return costs[kept].sum(), kept.sum()


def power_cost(log_probability: Tensor, power: float) -> Tensor:
    """(1 - p^power) / power of each token, from log p; -log p where the power is 0.

    >>> import torch
    >>> power_cost(torch.tensor([0.5, 0.25]).log(), 2)
    tensor([0.3750, 0.4688])
    """
    import torch

    return -torch.expm1(power * log_probability) / power if power else -log_probability
