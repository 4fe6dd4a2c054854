"""DARE: drop entries of each task vector by chance and rescale the rest.

Source: Yu et al. 2024, arXiv 2311.03099. An entry stays with probability ``density`` and is divided by it, so its
expectation is unchanged. mergekit instead scales a tensor's kept entries to its L1 norm (``rescale="l1"``); that factor
also tends to 1 / density as tensors grow.
"""

from __future__ import annotations

from .draw import Draw
from .registry import operator
from .signature import PerModel
from .sparsify import ByProbability, Density, keep_random, per_model
from .task_arithmetic import weighted_sum
from .ties import agreeing_sum
from .torch_later import Tensor


@operator(reads="tensor", paper="2311.03099", breaks=("identical",))
def dare_linear(
    deltas: Tensor,
    *,
    draw: Draw,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    normalize: bool = False,
    rescale: ByProbability = "probability",
    lambda_: float = 1.0,
) -> Tensor:
    """Drop at random, rescale, add.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        draw: Randomness by element.
        weight: Coefficient of each model.
        density: Probability of each entry to stay.
        normalize: Divide by the sum of the weights, unless that is zero.
        rescale: Divide kept entries by the density (probability, true), scale them to the L1 norm of the task vector
            (l1), or neither (none, false).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> dare_linear(torch.ones(1, 4), density=0.5, draw=Draw(seed=0, name="w")).unique()
    tensor([0., 2.])
    """
    kept = keep_random(deltas, per_model(density, deltas).clamp(0, 1), draw, rescale=rescale)
    return weighted_sum(kept, weight, normalize, lambda_)


@operator(reads="tensor", paper="2311.03099", breaks=("identical",))
def dare_ties(
    deltas: Tensor,
    *,
    draw: Draw,
    weight: PerModel = 1.0,
    density: Density = 1.0,
    normalize: bool = False,
    rescale: ByProbability = "probability",
    lambda_: float = 1.0,
) -> Tensor:
    """Drop at random, rescale, add the entries that agree in sign.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        draw: Randomness by element.
        weight: Coefficient of each model.
        density: Probability of each entry to stay.
        normalize: Divide by the summed weights of the models that agree.
        rescale: Divide kept entries by the density (probability, true), scale them to the L1 norm of the task vector
            (l1), or neither (none, false).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> dare_ties(torch.tensor([[1.0], [-3.0]]), draw=Draw(seed=0, name="w"))
    tensor([-3.])
    """
    kept = keep_random(deltas, per_model(density, deltas).clamp(0, 1), draw, rescale=rescale)
    return agreeing_sum(kept, weight, normalize, lambda_)
