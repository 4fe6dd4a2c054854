"""One-token rollout: at each position the model draws tokens, and the right one is rewarded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from weightops.recipes.data.token_objective import TokenObjective
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import ROW_INDEX, Batch, Row
from weightops.recipes.floor.settings import Count, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("in the spirit of", ("2509.26313",), "recipes/one-token-rollout.md")

CHUNK = 128
"""Tokens whose fp32 probabilities are in memory at one time."""


@dataclass(frozen=True)
class OneTokenRollout(TokenObjective):
    """The mean of -R(a) log p(a) over tokens a drawn from the model, at each token to predict.

    Source: One-Token Rollout, arXiv 2509.26313. The tokens are drawn with replacement from softmax(logits /
    temperature). R(a) is 1 for the token of the data and beta for any other; log p is at temperature 1, and only it has
    a gradient. Ours: the value of beta, which we have in no text of the paper; the draws, which follow from seed, step
    and row, so that they do not depend on how a step is split; and ``exact``, the value to which the mean tends with
    more draws.

    At temperature 1 the gradient of the exact value is (1 - beta) times that of -p, which is ``dynamic_tuning``.

    Attributes:
        draws: Tokens drawn at each position, K.
        temperature: Of the drawing, kappa.
        beta: Reward of a token that is not the one of the data.
        exact: Use the expected value and draw nothing. Rows held out are always measured so.
        mean: Over the ``tokens`` of a step, or over its ``rows``, each the mean over its own tokens.
        seed: Decides the draws.
        step: The number of the step, in a list of one.
    """

    draws: Count = 256
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.3
    beta: Annotated[float, Field(lt=1, allow_inf_nan=False)] = -0.1
    exact: bool = False
    mean: Literal["tokens", "rows"] = "tokens"
    seed: NotNegative = 0
    step: Any = field(default=None, metadata=RUNTIME)

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Self:
        """With the tokenizer's padding token."""
        return replace(super().ready(model, tokenizer, rows), step=[0])

    def begin_step(self, step: int) -> None:
        """Decides the draws of a step by its number: all processes and a resumed run draw alike."""
        self.step[0] = step

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """As for all objectives over tokens, and the ``row_index`` of each row, -1 for rows held out."""
        import torch

        return {**super().batch(rows), ROW_INDEX: torch.tensor([row.get(ROW_INDEX, -1) for row in rows])}

    def items(self, batch: Batch) -> float:
        """Tokens to predict, or rows."""
        return len(batch["targets"]) if self.mean == "rows" else super().items(batch)

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict, or over the rows."""
        import torch

        from weightops.recipes.floor.chunked_loss import chunked_loss

        present = batch["targets"] != -100
        counts = present.sum(1)
        logits = self.logits(model, batch)[present]
        weights = (1 / counts if self.mean == "rows" else torch.ones_like(counts)).float()
        weights = weights.repeat_interleave(counts).to(logits.device)
        exact = self.exact or not torch.is_grad_enabled()
        thresholds = None if exact else self._thresholds(batch[ROW_INDEX].tolist(), counts.tolist())

        def of_chunk(scores: Tensor, places: Tensor) -> Tensor:
            tokens = batch["targets"][present][places]
            if thresholds is None:
                costs = expected_cost(scores[0], tokens, self.temperature, self.beta)
            else:
                drawn = draw(scores[0].detach(), thresholds[places.cpu()].to(scores.device), self.temperature)
                costs = drawn_cost(scores[0], tokens, drawn, self.beta)
            return (weights[places] * costs).sum()

        places = torch.arange(len(logits), device=logits.device)
        return chunked_loss(logits[None], places, of_chunk, (), CHUNK)

    def _thresholds(self, rows: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Uniform numbers that decide the draws, [tokens, draws]: of each row by the seed, the step and its index."""
        import torch

        def of_row(row: int, count: int) -> Tensor:
            draws = torch.Generator().manual_seed(random.Random(f"{self.seed}/{self.step[0]}/{row}").getrandbits(63))
            return torch.rand(count, self.draws, generator=draws)

        return torch.cat([of_row(row, count) for row, count in zip(rows, counts, strict=True)])


def draw(logits: Tensor, thresholds: Tensor, temperature: float) -> Tensor:
    """Tokens by the inverse of the distribution function.

    Args:
        logits: [tokens, vocabulary].
        thresholds: Uniform in [0, 1), [tokens, draws], fp32.
        temperature: What the logits are divided by.

    Returns:
        Drawn tokens, [tokens, draws], int64.
    """
    import torch

    sums = (logits.float() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, thresholds * sums[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)


def drawn_cost(logits: Tensor, tokens: Tensor, drawn: Tensor, beta: float) -> Tensor:
    """The mean of -R(a) log p(a) over the drawn tokens.

    Args:
        logits: [tokens, vocabulary].
        tokens: The right ones, [tokens], int64.
        drawn: [tokens, draws], int64.
        beta: R of the others.

    Returns:
        [tokens], fp32.
    """
    import torch

    rewards = torch.where(drawn == tokens[:, None], 1.0, beta)
    return -(rewards * logits.float().log_softmax(-1).gather(-1, drawn)).mean(-1)


def expected_cost(logits: Tensor, tokens: Tensor, temperature: float, beta: float) -> Tensor:
    """What :func:`drawn_cost` tends to with more draws: -sum over a of q(a) R(a) log p(a), q without a gradient.

    Args:
        logits: [tokens, vocabulary].
        tokens: The right ones, [tokens], int64.
        temperature: Of q.
        beta: R of the others.

    Returns:
        [tokens], fp32.
    """
    scores = logits.float()
    drawing = (scores.detach() / temperature).softmax(-1)
    right = drawing.gather(-1, tokens[:, None])[:, 0]
    of_right = scores.gather(-1, tokens[:, None])[:, 0]
    total = scores.logsumexp(-1)
    return -(1 - beta) * right * (of_right - total) - beta * ((drawing * scores).sum(-1) - total)
