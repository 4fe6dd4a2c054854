"""What the predictions of several exits cost, with the gradient written down instead of traced.

Autograd would pass some twenty times over tables of logits; these formulas need seven passes. The derivatives by the
logits z are softmax(z) - onehot(token) for the cross entropy, and softmax(z) - teacher for the divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def exit_costs(scores: Tensor, targets: Tensor, weights: Sequence[float], distill: float = 0.0) -> Tensor:
    """The weighted sum of all exits' costs over some tokens.

    Args:
        scores: Logits, [exits, tokens, vocabulary], fp32; the last exit's are the teacher's.
        targets: Tokens to predict, [tokens].
        weights: One for each exit.
        distill: Share of an earlier exit's cost that is the divergence from the last exit's prediction, through which
            the last exit gets no gradient; the rest is the cross entropy of the token.

    Returns:
        A scalar, fp32, with a gradient for ``scores``.
    """
    cost: Tensor = _Costs.apply(scores, targets, tuple(weights), distill)  # type: ignore[no-untyped-call]
    return cost


class _Costs(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores: Tensor, targets: Tensor, weights: tuple[float, ...], distill: float) -> Tensor:
        logs = scores.detach().log_softmax(-1)
        place, total, last = targets[:, None], scores.new_zeros(()), len(logs) - 1
        teacher = logs[last].exp() if distill and last else None
        for number, (log, weight) in enumerate(zip(logs, weights, strict=True)):
            of_teacher = 0.0 if number == last else weight * distill
            of_token = weight - of_teacher
            total -= of_token * log.gather(1, place).sum()
            if teacher is not None and of_teacher:
                total += of_teacher * torch.linalg.vecdot(teacher, logs[last] - log).sum()
            gradient = log.exp_().mul_(weight)  # in the memory of the logarithms, which are not needed again
            gradient.scatter_add_(1, place, gradient.new_full(place.shape, -of_token))
            if teacher is not None and of_teacher:
                gradient.sub_(teacher, alpha=of_teacher)
        context.save_for_backward(logs)
        return total

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = context.saved_tensors
        return gradient * upstream, None, None, None
