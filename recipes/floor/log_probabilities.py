"""Log-probabilities of tokens, in fp32, without the fp32 softmax of a whole batch.

A softmax over a vocabulary of 150,000 takes several times the memory of the logits. So it is taken chunk by chunk, and
once more in the backward pass (ours; by torch's activation checkpoints).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024
"""Tokens whose softmax is in memory at one time."""


def log_probabilities(logits: Tensor, tokens: Tensor, chunk: int = CHUNK) -> Tensor:
    """The log-probability of each token that has one.

    Args:
        logits: [..., vocabulary], any floating dtype.
        tokens: [...], int64; -100 where there is none.
        chunk: Positions to compute at a time.

    Returns:
        fp32, one for each token other than -100, in the order of ``tokens``.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def of_chunk(some_logits: Tensor, some_tokens: Tensor) -> Tensor:
        present = some_tokens != -100
        return -torch.nn.functional.cross_entropy(some_logits[present].float(), some_tokens[present], reduction="none")

    chunks = zip(torch.split(logits.flatten(0, -2), chunk), torch.split(tokens.flatten(), chunk), strict=True)
    return torch.cat([checkpoint(of_chunk, *each, use_reentrant=False) for each in chunks])
