"""Early exits: the first layers of a model learn to answer through its own final norm and head.

Sources: Sorted LLaMA (SoFT), arXiv 2309.08968: all exits in each step. SortedNet, arXiv 2309.00255: one exit, drawn in
each step. LayerSkip, arXiv 2404.16710: the last layer and one exit in turn, the deeper the heavier, with layer dropout.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.data.token_objective import MODEL_INPUTS, TokenObjective
from weightops.recipes.floor.checking import relation
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch, Row
from weightops.recipes.floor.settings import Count, NotNegative, Share

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("implemented and tested", ("2309.08968", "2309.00255", "2404.16710"), "sorted.md")

CHUNK = 512
"""Rows of logits, over all exits, that are in memory at one time."""


@dataclass(frozen=True)
class Exits(TokenObjective):
    """Cross entropy of every next token at several depths of the model, in fp32, averaged over the depths.

    Only the tokens to predict reach the head. Exits that are not learned in a step are not computed, nor are the layers
    above the last that is. On rows held out, all exits count, and each has its own measure.

    Attributes:
        exits: Numbers of layers after which an answer is learned, rising; or how many, evenly spaced, the last being
            the whole model.
        each_step: ``all`` exits (SoFT), one ``drawn`` at random (SortedNet), or the last exit and one of the others
            ``in_turn`` (LayerSkip).
        weights: ``equal``, or ``deeper``: LayerSkip's, which grow with the square of the depth.
        growth: How fast ``deeper`` weights grow, LayerSkip's e_scale: 0 leaves only the last exit.
        layer_dropout: Probability that a row skips the last layer in training; earlier layers are skipped less often
            (LayerSkip's p_max). No layer is skipped on rows held out.
        distill: Share of the loss of earlier exits that is the Kullback-Leibler divergence from the last exit's
            prediction, instead of the cross entropy of the token.
        seed: Decides the exits that are drawn.
        parts: The model's layers, norm and head.
        step: The number of the step, in a list of one.
    """

    exits: Annotated[tuple[Count, ...], Field(min_length=1)] | Count = 4
    each_step: Literal["all", "drawn", "in_turn"] = "all"
    weights: Literal["equal", "deeper"] = "equal"
    growth: Annotated[float, Field(ge=0, le=1)] = 0.1
    layer_dropout: Share = 0.0
    distill: Share = 0.0
    seed: NotNegative = 0
    parts: Any = field(default=None, metadata=RUNTIME)
    step: Any = field(default=None, metadata=RUNTIME)

    @relation("exits")
    def _rise(self) -> Iterator[str]:
        if isinstance(self.exits, tuple) and any(low >= high for low, high in pairwise(self.exits)):
            yield f"must rise, each exit once; found {', '.join(map(str, self.exits))}"

    @relation("each_step")
    def _has_others(self) -> Iterator[str]:
        if self.each_step == "in_turn" and len(self.exits if isinstance(self.exits, tuple) else range(self.exits)) < 2:
            yield "in_turn needs a last exit and at least one other"

    @relation("distill")
    def _has_a_teacher(self) -> Iterator[str]:
        if self.distill and self.each_step == "drawn":
            yield "the last exit is not computed in each step where each_step is drawn; set distill to 0"

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Self:
        """With the model's parts, and the exits as numbers of layers."""
        from weightops.recipes.floor.exit_layers import find_exits

        parts = find_exits(model)
        exits = depths(self.exits, len(parts.layers))
        if self.layer_dropout:
            parts.drop_layers(self.layer_dropout)
        return replace(super().ready(model, tokenizer, rows), exits=exits, parts=parts, step=[0])

    def begin_step(self, step: int) -> None:
        """Decides the exits of a step by its number: all processes and a resumed run decide alike."""
        self.step[0] = step

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict; the mean over the exits, or their weighted mean."""
        import torch

        exits = self.learned() if torch.is_grad_enabled() else self._depths
        return self._loss(model, batch, exits, self.weights_of(exits))

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """``loss_at_18``: the cross entropy at each exit."""
        targets, hidden = self._hidden(model, batch, self._depths)
        import torch

        from weightops.recipes.floor.log_probabilities import log_probabilities

        def loss(states: Tensor) -> float:
            chunks = zip(torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True)
            return -sum(float(log_probabilities(self.parts.logits(some), tokens).sum()) for some, tokens in chunks)

        return {f"loss_at_{depth}": loss(states) for depth, states in zip(self._depths, hidden, strict=True)}

    @property
    def _depths(self) -> tuple[int, ...]:
        assert isinstance(self.exits, tuple)  # ready has made them numbers of layers
        return self.exits

    def learned(self) -> tuple[int, ...]:
        """The exits of this step."""
        *earlier, last = self._depths
        if self.each_step == "drawn":
            return (random.Random(f"{self.seed}/{self.step[0]}").choice(self._depths),)
        if self.each_step == "in_turn":
            return earlier[self.step[0] % len(earlier)], last
        return self._depths

    def weights_of(self, exits: Sequence[int]) -> list[float]:
        """How much each exit counts; the sum is 1.

        ``deeper`` is LayerSkip's e(l) with l = exit - 1: growth * (0 + ... + l), and at the last layer of the model
        l + growth * (0 + ... + (l - 1)).
        """
        if self.weights == "equal":
            return [1 / len(exits)] * len(exits)
        last = len(self.parts.layers)
        raw = [
            (depth - 1) + self.growth * (depth - 1) * (depth - 2) / 2
            if depth == last
            else self.growth * depth * (depth - 1) / 2
            for depth in exits
        ]
        return [each / sum(raw) for each in raw] if sum(raw) else [1 / len(exits)] * len(exits)

    def _hidden(self, model: Any, batch: Batch, exits: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The targets there are, [tokens], and the normed hidden states that predict them, [exits, tokens, width]."""
        import torch

        inputs = {name: tensor for name, tensor in batch.items() if name in MODEL_INPUTS}
        present = batch["targets"] != -100
        with self.parts.leaving(exits) as states:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return batch["targets"][present], torch.stack([self.parts.norm(states[depth][present]) for depth in exits])

    def _loss(self, model: Any, batch: Batch, exits: Sequence[int], weights: Sequence[float]) -> Tensor:
        from weightops.recipes.floor.chunked_loss import chunked_loss
        from weightops.recipes.floor.exit_costs import exit_costs

        targets, hidden = self._hidden(model, batch, exits)

        def of_chunk(states: Tensor, tokens: Tensor) -> Tensor:
            return exit_costs(self.parts.logits(states), tokens, weights, self.distill)

        parameters = [parameter for parameter in self.parts.head.parameters() if parameter.requires_grad]
        return chunked_loss(hidden, targets, of_chunk, parameters, max(CHUNK // len(exits), 1))


def depths(exits: tuple[int, ...] | int, layers: int) -> tuple[int, ...]:
    """Exits as numbers of layers.

    Args:
        exits: Those numbers, or how many exits to space evenly.
        layers: Layers of the model.

    Raises:
        WeightopsError: the model has fewer layers.

    >>> depths(4, 30)
    (8, 15, 22, 30)
    """
    most = exits if isinstance(exits, int) else max(exits)
    if most > layers:
        what = f"{exits} exits" if isinstance(exits, int) else f"exit {most}"
        raise WeightopsError(f"objective.exits: {what} of a model with {layers} layers; choose at most {layers}")
    return tuple(round(layers * (i + 1) / exits) for i in range(exits)) if isinstance(exits, int) else exits
