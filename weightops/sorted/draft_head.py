"""A smaller head for drafts: the logits of frequent tokens and of those in the text, instead of all tokens'.

Reading a large vocabulary's head costs as much as many layers. A draft that misses a rare token is shorter, not wrong:
the whole model checks it with its whole head. Source: FR-Spec (arXiv 2502.14856), which counts tokens in a corpus.
Ours: the lowest ids stand for the frequent tokens, because most tokenizers number their tokens from the most frequent
one on; the prompt's tokens, and those that the whole model has written, join them. Nothing has to be learned or stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .few_tokens import product

#: How far the logits of a head that is one matrix may be from the model's own, as a share of the largest (ours): what
#: rounding to 16 bits does, but not a scale.
_ROUNDING = 0.02


class DraftHead:
    """The rows of a linear head that belong to some tokens.

    Args:
        head: The model's head.
        frequent: The number of lowest ids, all of which are in.
    """

    def __init__(self, head: nn.Linear, frequent: int) -> None:
        self._weight, self._bias, self._frequent = head.weight, head.bias, frequent
        self._others: dict[int, None] = {}
        self._ids = torch.empty(0, dtype=torch.long, device=head.weight.device)
        self._rows = head.weight[:0]

    @property
    def vocabulary(self) -> int:
        """Tokens of the whole head."""
        return self._weight.shape[0]

    def add(self, tokens: Iterable[int]) -> None:
        """Let drafts hold these tokens too."""
        new = dict.fromkeys(token for token in tokens if token >= self._frequent and token not in self._others)
        if new:
            self._others |= new
            ids = torch.tensor(list(new), device=self._ids.device)
            self._ids, self._rows = torch.cat([self._ids, ids]), torch.cat([self._rows, self._weight[ids]])

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of normed hidden states [..., width]: [..., vocabulary], minus infinity for tokens not in it."""
        scores = hidden.new_full((*hidden.shape[:-1], self.vocabulary), float("-inf"))
        bias = self._bias
        scores[..., : self._frequent] = product(
            hidden, self._weight[: self._frequent], None if bias is None else bias[: self._frequent]
        )
        if self._others:
            scores[..., self._ids] = product(hidden, self._rows, None if bias is None else bias[self._ids])
        return scores


def draft_head(model: Any, frequent: int) -> DraftHead | None:
    """A smaller head for drafts, or none if the model's is not one matrix, or would not become much smaller.

    Args:
        model: A causal language model of transformers.
        frequent: The number of lowest ids; 0 for the whole head.
    """
    head = model.get_output_embeddings()
    one_matrix = type(head) is nn.Linear and head.weight.is_floating_point()
    return DraftHead(head, frequent) if one_matrix and 0 < 2 * frequent <= head.weight.shape[0] else None


def gives_logits_of(scores: Tensor, expected: Tensor) -> bool:
    """Whether a draft head's scores are the model's own logits, for the tokens that it holds.

    They are not where the model scales or caps what its head gives.
    """
    held = scores != float("-inf")
    difference = (scores[held].float() - expected[held].float()).abs().amax()
    return bool(difference <= _ROUNDING * expected[held].float().abs().amax())
