"""Model Stock: goes from the base toward the average, as far as the angle between the models suggests."""

from __future__ import annotations

import numpy as np

from .gram import Doubles, cosines, gram, mix
from .registry import operator
from .sparsify import flat
from .torch_later import Tensor


def model_stock_coefficients(gram: Doubles) -> Doubles:
    """Coefficients of the n task vectors, all equal: [..., n, n] to [..., n].

    With c the mean cosine of all pairs, t = n c / (1 + (n - 1) c) of their average; none at the pole.
    """
    count = gram.shape[-1]
    cosine = cosines(gram)
    mean = np.mean([cosine[..., i, j] for i in range(count) for j in range(i + 1, count)], 0)
    pole = 1 + (count - 1) * mean
    share = np.divide(mean, pole, out=np.zeros_like(pole), where=np.abs(pole) >= 1e-6)
    return np.repeat(share[..., None], count, -1)


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

    >>> import torch
    >>> model_stock(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([0.8284, 0.4142])
    """
    return mix(model_stock_coefficients(gram(deltas if filter_wise and deltas.dim() > 1 else flat(deltas))), deltas)
