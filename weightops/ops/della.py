"""DELLA: drop entries by chance, small ones more often than large ones of their row.

Source: Deep et al. 2024, arXiv 2406.11617. The paper divides kept entries by their probability, which leaves the
expectation unchanged (``rescale="probability"``). The default is mergekit's, so that its files keep their meaning: one
factor for the whole task vector, to its L1 norm, with which large entries grow on average and small ones shrink.
"""

from __future__ import annotations

from typing import Annotated, Any

from ..errors import WeightopsError
from .draw import Draw
from .registry import operator
from .signature import PerModel, Range
from .sparsify import ByNorm, Density, keep_random, numbers
from .task_arithmetic import weighted_sum
from .ties import agreeing_sum
from .torch_later import Tensor, torch


@operator(reads="tensor", paper="2406.11617")
def della(
    deltas: Tensor,
    *,
    draw: Draw,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    epsilon: Annotated[PerModel, Range(0, 1, below_high=True)] = 0.15,
    normalize: bool = True,
    rescale: ByNorm = "l1",
    lambda_: float = 1.0,
) -> Tensor:
    """Drop by rank within each row, rescale, average what agrees in sign.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        draw: Randomness by element.
        weight: Coefficient of each model.
        density: Mean probability of an entry to stay; 1 keeps all.
        epsilon: The probability runs from density - epsilon (smallest of a row) to density + epsilon (largest).
        normalize: Divide by the summed weights of the models that agree.
        rescale: Scale kept entries to the L1 norm of the task vector (l1, true), divide each by its probability
            (probability), or neither (none, false).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> della(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), draw=Draw(seed=0, name="w"))
    tensor([2., 2.])
    """
    kept = keep_random(deltas, row_probabilities(deltas, density, epsilon), draw, rescale=rescale)
    return agreeing_sum(kept, weight, normalize, lambda_)


@operator(reads="tensor", paper="2406.11617", breaks=("identical",))
def della_linear(
    deltas: Tensor,
    *,
    draw: Draw,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    epsilon: Annotated[PerModel, Range(0, 1, below_high=True)] = 0.15,
    normalize: bool = False,
    rescale: ByNorm = "l1",
    lambda_: float = 1.0,
) -> Tensor:
    """Drop by rank within each row, rescale, add.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        draw: Randomness by element.
        weight: Coefficient of each model.
        density: Mean probability of an entry to stay; 1 keeps all.
        epsilon: The probability runs from density - epsilon (smallest of a row) to density + epsilon (largest).
        normalize: Divide by the sum of the weights, unless that is zero.
        rescale: Scale kept entries to the L1 norm of the task vector (l1, true), divide each by its probability
            (probability), or neither (none, false).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> della_linear(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), draw=Draw(seed=0, name="w"))
    tensor([4., 1.])
    """
    kept = keep_random(deltas, row_probabilities(deltas, density, epsilon), draw, rescale=rescale)
    return weighted_sum(kept, weight, normalize, lambda_)


def row_probabilities(deltas: Tensor, density: Any, epsilon: Any) -> Tensor:
    """Probability of each entry to stay, linear in its rank by magnitude within its row (the last dimension).

    Among equals the lower index ranks higher; a row of one entry gets the density itself (both ours).

    Args:
        deltas: [n, ..., row].
        density: A number for each model; 1 or more keeps everything, 0 or less nothing.
        epsilon: A number for each model, density +- epsilon inside (0, 1).

    Returns:
        [n, ..., row], the deltas' dtype.

    Raises:
        WeightopsError: density +- epsilon leaves (0, 1).

    >>> row_probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.25)
    tensor([[0.7500, 0.2500, 0.5000]])
    """
    shares = zip(numbers(density, len(deltas)), numbers(epsilon, len(deltas)), strict=True)
    return torch.stack([_probability(delta, d, e) for delta, (d, e) in zip(deltas, shares, strict=True)])


def _probability(delta: Tensor, density: float, epsilon: float) -> Tensor:
    if density >= 1 or density <= 0:
        return torch.full_like(delta, min(max(density, 0.0), 1.0))
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise WeightopsError(
            f"della: density {density:g} and epsilon {epsilon:g}: density - epsilon and density + epsilon must both "
            f"be between 0 and 1; take epsilon below {min(density, 1 - density):g}"
        )
    row = delta.shape[-1] if delta.dim() else 1
    # argsort twice gives each entry's position in descending order: the number of entries that outrank it.
    outranked_by = delta.abs().reshape(-1, row).argsort(dim=1, descending=True, stable=True).argsort(1)
    share = 1 - outranked_by.double() / (row - 1) if row > 1 else torch.full((delta.numel(), 1), 0.5).double()
    return (density - epsilon + 2 * epsilon * share).reshape(delta.shape).to(delta.dtype)
