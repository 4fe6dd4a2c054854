"""Consensus merging: keep the entries that several tasks use, found by TALL masks.

Source: Wang et al. 2024, arXiv 2405.07813.
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import PerModel, Range
from .sparsify import per_model
from .torch_later import Tensor


@operator(reads="elementwise", paper="2405.07813", breaks=("identical", "one"))
def consensus(
    deltas: Tensor, *, k: Annotated[int, Range(0)] = 2, tall_lambda: PerModel = 0.4, lambda_: float = 1.0
) -> Tensor:
    """Add the task vectors where at least k tasks use the sum.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        k: Least number of tasks; 1 drops entries that no task uses, 2 also those that one task uses, 0 drops nothing.
        tall_lambda: Factor of each task, see ``tall_masks``; the authors search 0.2 to 0.6 (the default is ours).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> consensus(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([2., 0.])
    """
    used_by = tall_masks(deltas, tall_lambda).sum(0)
    return deltas.sum(0).where(used_by >= k, 0) * lambda_


def tall_masks(deltas: Tensor, tall_lambda: PerModel) -> Tensor:
    """Where each task uses the sum of all: it is nearer to the task than the base is, by the factor tall_lambda.

    In terms of task vectors, abs(task) > abs(sum - task) * tall_lambda (strict, as in the authors' code).

    Returns:
        Masks, [n, ...].

    >>> import torch
    >>> tall_masks(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), 0.4)
    tensor([[ True,  True],
            [ True, False]])
    """
    return deltas.abs() > (deltas.sum(0) - deltas).abs() * per_model(tall_lambda, deltas)
