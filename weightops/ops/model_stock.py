"""Model Stock: goes from the base toward the average, as far as the angle between the models suggests."""

from __future__ import annotations

import torch
from torch import Tensor

from .gram import cosines, gram, mix
from .registry import operator
from .sparsify import flat


def model_stock_coefficients(gram: Tensor) -> Tensor:
    """Coefficients of the n task vectors, all equal: [..., n, n] to [..., n], fp64.

    With c the mean cosine of all pairs, t = n c / (1 + (n - 1) c) of their average; none at the pole.
    """
    count = gram.shape[-1]
    cosine = cosines(gram)
    mean = torch.stack([cosine[..., i, j] for i in range(count) for j in range(i + 1, count)]).mean(0)
    pole = 1 + (count - 1) * mean
    return torch.where(pole.abs() < 1e-6, 0, mean / pole).unsqueeze(-1).expand(*mean.shape, count)


@operator(
    reads="tensor",
    paper="2403.19522",
    models=(2, None),
    coefficients=model_stock_coefficients,
    whole_when={"filter_wise": False},
)
def model_stock(deltas: Tensor, *, filter_wise: bool = False) -> Tensor:
    """Scale the average task vector by how well the models agree (Jang et al. 2024, arXiv 2403.19522).

    A zero task vector counts as orthogonal.

    Args:
        deltas: Task vectors, [n, ...], fp32 or fp64.
        filter_wise: Take the angle of each row (the last dimension) instead of the whole tensor.

    Returns:
        The merged task vector, [...].

    >>> model_stock(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([0.8284, 0.4142])
    """
    return mix(model_stock_coefficients(gram(deltas if filter_wise and deltas.dim() > 1 else flat(deltas))), deltas)
