"""Choosing the next token from logits, and choosing it from a draft without changing its distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightopsError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most probable token; above, logits are divided by it and a token is drawn.
        top_k: Draw from this many of the most probable tokens; 0 for all.
        top_p: Draw from the smallest set of most probable tokens that holds this share of the probability.
        seed: Seed of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise WeightopsError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < 0:
            raise WeightopsError(f"top_k is {self.top_k}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise WeightopsError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that tokens are drawn from, fp32, of the shape of the logits [..., vocabulary]."""
        scaled = logits.float() / self.temperature
        if self.top_k and self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, float("-inf"))
        chances = scaled.softmax(-1)
        if self.top_p < 1:
            chances = _nucleus(chances, self.top_p)
        return chances


def _nucleus(chances: Tensor, share: float) -> Tensor:
    """The distribution on the most probable tokens that together hold a share of it; at least one token."""
    ordered, order = chances.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= share, 0.0)
    inside = torch.zeros_like(chances).scatter(-1, order, kept)
    return inside / inside.sum(-1, keepdim=True)


class Chooser:
    """Chooses tokens with one stream of draws, so that a seed gives the same text again."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self._draws = torch.Generator(device).manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next token of each row, from logits [rows, vocabulary].

        Returns:
            Tokens [rows], and the distribution they were drawn from [rows, vocabulary]; none when greedy.
        """
        if self.sampling.greedy:
            return logits.float().argmax(-1), None  # in 16 bits a CPU searches four times as long
        chances = self.sampling.probabilities(logits)
        return self._drawn(chances), chances

    def accept(self, draft: Tensor, draft_chances: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compare a draft with what the whole model would have chosen.

        Greedy: the draft is right as far as its tokens are the model's most probable ones. Otherwise rejection sampling
        (Leviathan et al., arXiv 2211.17192): a token x drawn from q stays with probability min(1, p(x) / q(x)); the
        first that does not is drawn again from max(0, p - q), normalised. What comes out is distributed as p.

        Args:
            draft: Drafted tokens, [rows, length].
            draft_chances: The distributions they were drawn from, [rows, length, vocabulary]; none when greedy.
            logits: The whole model's logits before each drafted token and after the last, [rows, length + 1,
                vocabulary].

        Returns:
            How many drafted tokens stay in each row, [rows], and the token that follows them, [rows].
        """
        if draft_chances is None:
            chosen = logits.float().argmax(-1)
            accepted = (draft == chosen[:, :-1]).int().cumprod(1).sum(1)
            return accepted, chosen.gather(1, accepted[:, None]).squeeze(1)
        wanted = self.sampling.probabilities(logits)
        p = wanted[:, :-1].gather(2, draft[..., None]).squeeze(2)
        q = draft_chances.gather(2, draft[..., None]).squeeze(2)
        draws = torch.rand(p.shape, generator=self._draws, device=p.device)
        accepted = (draws * q < p).int().cumprod(1).sum(1)
        rows = torch.arange(len(draft), device=draft.device)
        # After a draft that stays whole, q is 0: the next token is drawn from p itself.
        q_there = torch.cat([draft_chances, torch.zeros_like(wanted[:, :1])], 1)[rows, accepted]
        rest = (wanted[rows, accepted] - q_there).clamp(min=0)
        # In exact arithmetic a rejected token leaves something; rounding may leave nothing.
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, wanted[rows, accepted])
        return accepted, self._drawn(rest)

    def _drawn(self, weights: Tensor) -> Tensor:
        return torch.multinomial(weights, 1, generator=self._draws).squeeze(-1)
