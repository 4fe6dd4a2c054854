"""MetaGPT: task arithmetic with coefficients from the norms of the whole task vectors.

Source: Zhou et al. 2024, arXiv 2406.11385. The coefficient of task t is ||theta_t - theta_0||^2 divided by the sum over
the tasks k of ||theta_k - theta_0||^2, norms over all weights of the model. No data is needed.
"""

from __future__ import annotations

from .gram import Doubles, gram, mix
from .registry import operator
from .sparsify import flat
from .torch_later import Tensor


def metagpt_coefficients(gram: Doubles, *, lambda_: float = 1.0) -> Doubles:
    """Coefficients of the n task vectors: [n, n] to [n]; all zero where no model differs from the base (ours)."""
    squares = gram.diagonal()
    total = squares.sum()
    return squares / (total if total > 0 else 1.0) * lambda_


@operator(reads="model", paper="2406.11385", coefficients=metagpt_coefficients)
def metagpt(deltas: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """Add the task vectors, each times its share of their summed squared lengths over the whole model.

    Called directly, this function treats its input as the whole model.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        lambda_: Factor on the whole (ours; the paper's method is 1).

    Returns:
        The merged task vector, [...].

    >>> import torch
    >>> metagpt(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))  # squared lengths 2 and 4
    tensor([1.6667, 0.3333])
    """
    return mix(metagpt_coefficients(gram(flat(deltas)), lambda_=lambda_), deltas)
