"""Faster fp32 products of a few tokens with a matrix, on the CPU.

torch (2.13, MKL) multiplies two to four tokens by a matrix two to four times as slowly as the matrix by their
transpose, and one token half as fast as two. Decoding does little else, so that checking a draft would cost more than
it saves. In 16 bits there is no such difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 4
"""Tokens for which the transposed product is the faster one (measured)."""


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``nn.functional.linear``, up to rounding: [..., in] and [out, in] to [..., out]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    if not 0 < len(rows) <= _MOST or not _is_slow(weight) or hidden.dtype != weight.dtype:
        return nn.functional.linear(hidden, weight, bias)
    columns = (rows if len(rows) > 1 else rows.repeat(2, 1)).T  # torch multiplies other layouts more slowly
    result = (weight @ columns).T[: len(rows)].reshape(*hidden.shape[:-1], len(weight))
    return result if bias is None else result + bias


@contextmanager
def fast_few_tokens(model: Any) -> Iterator[None]:
    """Let a model's linear layers multiply so within the block; those whose ``forward`` somebody replaced stay."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and "forward" not in vars(module) and _is_slow(module.weight)
    ]
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    return product(hidden, layer.weight, layer.bias)


def _is_slow(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"
