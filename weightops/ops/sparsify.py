"""What several methods share: a number for each model, and which entries of a task vector stay.

Every choice by magnitude follows one order (ours): larger magnitude first, and among equals the lower flat index (C
order). It does not depend on how a tensor is sliced or on the sorting routine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np

from ..errors import WeightopsError
from .draw import Draw
from .signature import PerModel, Range, Switch
from .torch_later import Tensor, torch

#: Share of the entries of a task vector to keep.
Density = Annotated[PerModel, Range(0, 1)]

#: How entries that were kept by chance are scaled: each by its probability, or all to the task vector's L1 norm.
Rescale = Literal["probability", "l1", "none"]
ByProbability = Annotated[Rescale, Switch("probability", "none")]
ByNorm = Annotated[Rescale, Switch("l1", "none")]


def per_model(value: Any, stack: Tensor) -> Tensor:
    """A number for each model, shaped to multiply the stack.

    Args:
        value: One number for all models, or a sequence of n.
        stack: [n, ...].

    Returns:
        [n, 1, ...], the stack's dtype, on its device.

    Raises:
        WeightopsError: the sequence does not have n values.

    >>> per_model([0.5, 2.0], torch.ones(2, 3)).shape
    torch.Size([2, 1])
    """
    vector = torch.tensor(numbers(value, len(stack)), dtype=torch.float64).to(stack.dtype).to(stack.device)
    return vector.reshape(-1, *[1] * (stack.dim() - 1))


def numbers(value: Any, count: int) -> list[float]:
    """A number for each of ``count`` models, in double precision.

    Raises:
        WeightopsError: a sequence of another length.

    >>> numbers(0.5, 2), numbers((1, 2), 2)
    ([0.5, 0.5], [1.0, 2.0])
    """
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, Sequence):
        return [float(values)] * count
    if len(values) != count:
        raise WeightopsError(f"{len(values)} values for {count} models; give one number, or one for each")
    return [float(number) for number in values]


def flat(stack: Tensor) -> Tensor:
    """Each model's tensor as one vector: [n, ...] to [n, numel]."""
    return stack.reshape(len(stack), -1)


def kept_count(density: float, numel: int) -> int:
    """The number of entries that a density keeps: all from 1 on, else floor(density * numel) in double precision.

    >>> kept_count(0.5, 5), kept_count(1.0, 5), kept_count(-1.0, 5)
    (2, 5, 0)
    """
    return min(max(int(density * numel), 0), numel)


def largest(scores: Tensor, count: int) -> Tensor:
    """Mark the count largest scores; among equals the lower flat index wins (ours).

    Computed as a threshold and a number of ties to take in order, because a pass over slices can do the same.

    Args:
        scores: [...], any real dtype, no NaN.
        count: How many to mark.

    Returns:
        A mask, [...], with exactly min(count, numel) set.

    >>> largest(torch.tensor([3.0, 1.0, 3.0, 3.0]), 2)
    tensor([ True, False,  True, False])
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    line = scores.reshape(-1)
    threshold = line.kthvalue(line.numel() - count + 1).values
    above, ties = line > threshold, line == threshold
    remaining = count - above.sum()
    return (above | (ties & (ties.cumsum(0) <= remaining))).reshape(scores.shape)


def ranked(line: Tensor, *ranks: int) -> Tensor:
    """The entries at some ranks, counted from 0 for the smallest: [n] to [ranks]. Exact.

    >>> ranked(torch.tensor([5.0, 1.0, 3.0]), 0, 1)
    tensor([1., 3.])
    """
    entries = line.cpu().numpy()  # NumPy selects several ranks at once, each three times as fast as torch
    return torch.from_numpy(np.partition(entries, ranks)[list(ranks)]).to(line.device)


def keep_largest(deltas: Tensor, density: Any) -> Tensor:
    """Keep the largest entries by magnitude of each task vector, zero the rest.

    Exactly ``kept_count(density, numel)`` entries of each stay, but never fewer than one at a positive density.

    >>> keep_largest(torch.tensor([[1.0, -3.0, 2.0, 3.0]]), 0.5)
    tensor([[ 0., -3.,  0.,  3.]])
    """
    shares = numbers(density, len(deltas))
    return torch.stack([_keep(delta, share) for delta, share in zip(deltas, shares, strict=True)])


def _keep(delta: Tensor, density: float) -> Tensor:
    count = max(kept_count(density, delta.numel()), 1 if density > 0 else 0)
    return delta.where(largest(delta.abs(), count), 0)


def keep_random(deltas: Tensor, probability: Tensor, draw: Draw, *, rescale: Rescale) -> Tensor:
    """Keep each entry by chance.

    Args:
        deltas: Task vectors, or the same slice of each, [n, ...].
        probability: Probability of an entry to stay, broadcastable to [n, ...].
        draw: Random numbers, from the first entry on.
        rescale: ``probability``: divide kept entries by theirs, so that the expectation is the task vector. ``l1``:
            scale each model's to the L1 norm of its task vector, as mergekit does.
    """
    drawn = [torch.from_numpy(draw.uniform(i, d.numel())).reshape(d.shape) for i, d in enumerate(deltas)]
    uniform = torch.stack(drawn).to(deltas.device)
    kept = deltas.where(uniform < probability, 0)
    if rescale == "probability":
        return kept / probability.where(probability > 0, 1)
    return same_l1(kept, deltas) if rescale == "l1" else kept


def same_l1(sparse: Tensor, deltas: Tensor) -> Tensor:
    """Scale each sparse task vector up to the L1 norm of the full one (fp64 sums); a zero vector stays zero.

    >>> same_l1(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 3.0]]))
    tensor([[0., 4.]])
    """
    before, after = (flat(t.abs()).sum(1, dtype=torch.float64) for t in (deltas, sparse))
    return sparse * per_model((before / after).where(after > 0, 1), sparse)
