"""How far to draft, and from which exit: fixed, or chosen while decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

#: Weight of the newest round in the running acceptance rates (ours).
_NEWEST = 0.2
#: Rounds between two looks at all exits (ours): each look costs a head for every exit and token.
_ROUNDS = 8
#: A draft ends when its exit gives its best token less than this (ours).
_LEAST_CONFIDENCE = 0.4


class DraftPolicy(Protocol):
    """Says before each round which exit drafts, and how many tokens."""

    @property
    def watched(self) -> Sequence[int]:
        """Exits whose hidden states it wants to see from the next round; empty for none."""

    def choose(self) -> tuple[int, int]:
        """The exit, in layers, and the number of tokens to draft; 0 tokens for a plain step."""

    def stops(self, logits: Tensor) -> bool:
        """Whether the draft ends after the token these logits gave, [rows, vocabulary]."""

    def observe(self, exit_layer: int, drafted: int, accepted: Sequence[int]) -> None:
        """Learn how many tokens of each row's draft stayed."""

    def compare(self, agreement: Mapping[int, float]) -> None:
        """Learn for each watched exit in what share of the tokens it agrees with the whole model."""


@dataclass(frozen=True)
class FixedDraft:
    """The same exit and length each round."""

    exit_layer: int
    length: int
    watched: Sequence[int] = ()

    def choose(self) -> tuple[int, int]:
        """The exit and the length."""
        return self.exit_layer, self.length

    def stops(self, logits: Tensor) -> bool:
        """Never."""
        return False

    def observe(self, exit_layer: int, drafted: int, accepted: Sequence[int]) -> None:
        """Nothing to learn."""

    def compare(self, agreement: Mapping[int, float]) -> None:
        """Nothing to learn."""


@dataclass
class DynamicDraft:
    """Chooses exit and length for the most tokens per loaded layer (DEL, arXiv 2504.05598).

    With the running acceptance rate a of exit l, a round that drafts d tokens gives (1 - a^(d+1)) / (1 - a) tokens. The
    paper divides by the layers it loads, d * l + L. Ours adds the heads, which each drafted token and each check load
    too: d * (l + g) + L + h, with g and h the sizes of the drafts' head and of the whole one in layers. Also ours: the
    rates start from the agreement on the end of the prompt, are a moving average, and all exits are compared once in
    some rounds, not in each. As in the paper a draft also ends where its exit is unsure; the threshold is ours, and
    fixed.

    Args:
        exits: Exits to choose from, in layers, rising.
        depth: Layers of the whole model.
        head: Size of the head in layers.
        draft_head: Size of the head that drafts use.
        longest: Most tokens in a draft.
    """

    exits: Sequence[int]
    depth: int
    head: float
    draft_head: float
    longest: int = 8
    rates: dict[int, float] = field(default_factory=dict)
    _round: int = 0

    @property
    def watched(self) -> Sequence[int]:
        """All exits, in the first round and then at intervals."""
        return self.exits if self._round % _ROUNDS == 0 else ()

    def choose(self) -> tuple[int, int]:
        """The best exit and length by the rates so far; a plain step if no draft is expected to pay."""
        plans = [(layer, length) for layer in self.exits for length in range(1, self.longest + 1)]
        best = max(plans, key=self._tokens_per_layer)
        plain = 1 / (self.depth + self.head)
        self._round += 1
        return best if self._tokens_per_layer(best) > plain else (best[0], 0)

    def _tokens_per_layer(self, plan: tuple[int, int]) -> float:
        layer, length = plan
        rate = min(self.rates.get(layer, 0.0), 0.99)
        tokens = (1 - rate ** (length + 1)) / (1 - rate)
        return tokens / (length * (layer + self.draft_head) + self.depth + self.head)

    def stops(self, logits: Tensor) -> bool:
        """Whether the exit is unsure of its best token, on average over the rows."""
        top = logits.float().log_softmax(-1).amax(-1).exp()
        return bool(top.mean() < _LEAST_CONFIDENCE)

    def observe(self, exit_layer: int, drafted: int, accepted: Sequence[int]) -> None:
        """Update the rate of the exit that drafted; a draft ends at its first rejected token."""
        tried = sum(min(count + 1, drafted) for count in accepted)
        if tried:
            self._update(exit_layer, sum(accepted) / tried)

    def compare(self, agreement: Mapping[int, float]) -> None:
        """Update the rate of each exit; the first comparison sets it."""
        for layer, share in agreement.items():
            if layer in self.rates:
                self._update(layer, share)
            else:
                self.rates[layer] = share

    def _update(self, layer: int, share: float) -> None:
        self.rates[layer] = (1 - _NEWEST) * self.rates.get(layer, share) + _NEWEST * share
