"""NearSwap: take the other model's entries where they are close to the base's."""

from __future__ import annotations

from .registry import operator
from .torch_later import Tensor


@operator(
    reads="elementwise",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    models=(1, 1),
    breaks=("identical", "one", "size"),
)
def nearswap(deltas: Tensor, *, t: float) -> Tensor:
    """Move each entry toward the model, by t at most.

    The published weight min(1, t / abs(delta)) times delta is delta clamped to [-t, t].

    Args:
        deltas: The one model's task vector, [1, ...], fp32 or fp64.
        t: Longest move; no move if it is 0 or less.

    Returns:
        The task vector to add, [...].

    >>> import torch
    >>> nearswap(torch.tensor([[0.5, -3.0]]), t=1.0)
    tensor([ 0.5000, -1.0000])
    """
    reach = max(t, 0.0)
    return deltas[0].clamp(-reach, reach)
