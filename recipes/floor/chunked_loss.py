"""A loss over a large vocabulary, a chunk of tokens at a time, with its gradient computed in the same pass.

Each chunk's gradient is taken as soon as its loss is known, and only sums are kept. So no more logits than those of a
chunk are ever in memory, and none are computed twice, as they would be by activation checkpoints. The idea is that of
Liger Kernel (Hsu et al. 2024, arXiv 2410.10989, section 3.2); here any head that is a function of its inputs will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LossOfChunk = Callable[[Tensor, Tensor], Tensor]
"""Hidden states [exits, tokens, width] and targets [tokens] to the loss summed over them, a scalar."""


def chunked_loss(
    hidden: Tensor, targets: Tensor, loss_of: LossOfChunk, parameters: Sequence[Tensor], chunk: int
) -> Tensor:
    """The sum of a loss over all tokens.

    Args:
        hidden: [exits, tokens, width].
        targets: [tokens], int64.
        loss_of: Called on a chunk of tokens; it may use ``parameters``, and nothing else that has a gradient.
        parameters: What of the head trains.
        chunk: Tokens at a time, at least 1.

    Returns:
        A scalar, fp32 (fp64 for fp64 states), with a gradient for ``hidden`` and ``parameters``.
    """
    total: Tensor = _Chunked.apply(loss_of, targets, chunk, hidden, *parameters)  # type: ignore[no-untyped-call]
    return total


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, loss_of: LossOfChunk, targets: Tensor, chunk: int, hidden: Tensor, *parameters: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        needed = [context.needs_input_grad[3], *context.needs_input_grad[4:]]
        of_hidden = torch.empty_like(hidden) if needed[0] else None
        trained = [parameter for parameter, need in zip(parameters, needed[1:], strict=True) if need]
        of_trained = [torch.zeros_like(parameter) for parameter in trained]
        for begin in range(0, len(targets), chunk):
            part = hidden[:, begin : begin + chunk].detach()
            if not any(needed):
                total += loss_of(part, targets[begin : begin + chunk])
                continue
            with torch.enable_grad():
                loss = loss_of(part.requires_grad_(), targets[begin : begin + chunk])
                first, *others = torch.autograd.grad(loss, [part, *trained])
            total += loss.detach()
            if of_hidden is not None:
                of_hidden[:, begin : begin + chunk] = first
            for summed, gradient in zip(of_trained, others, strict=True):
                summed += gradient
        gradients = iter(of_trained)
        context.needed = needed
        context.save_for_backward(of_hidden, *(next(gradients) if need else None for need in needed[1:]))
        return total

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if each is None else each * upstream for each in context.saved_tensors)
        return (None, None, None, *gradients)
