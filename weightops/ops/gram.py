"""Methods that are linear combinations: coefficients from inner products, then one weighted sum.

For slerp, nuslerp, multislerp, karcher and model_stock the result is in the span of the inputs, and its coefficients
depend on the n x n matrix of their inner products, the Gram matrix (ours). The matrix is small and a sum over slices,
and in fp64 it gives more digits of the coefficients than fp32 arithmetic on the tensors themselves.

The inputs are the first argument. ``slerp`` needs a base and puts it before the model. In ``nuslerp`` and
``multislerp`` a base is optional: it is subtracted from the models first and added back at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gram(stack: Tensor) -> Tensor:
    """Inner products of n vectors, or of n rows at each of several places.

    Args:
        stack: [n, ..., length].

    Returns:
        [..., n, n], fp64.

    >>> gram(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([[25.,  3.],
            [ 3.,  1.]], dtype=torch.float64)
    """
    rows = stack.double().movedim(0, -2)
    return rows @ rows.transpose(-1, -2)


def mix(coefficients: Tensor, stack: Tensor) -> Tensor:
    """Sum of coefficient times vector.

    Args:
        coefficients: [n], or [..., n] for n rows at each of several places.
        stack: [n, ..., length].

    Returns:
        [..., length], the stack's dtype.

    >>> mix(torch.tensor([2.0, 1.0]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([7., 8.])
    """
    factors = coefficients.movedim(-1, 0).to(stack.dtype)
    return (factors.reshape(*factors.shape, *[1] * (stack.dim() - factors.dim())) * stack).sum(0)


def cosines(gram: Tensor) -> Tensor:
    """Cosines between n vectors; a zero vector counts as orthogonal to all.

    Args:
        gram: [..., n, n].

    Returns:
        [..., n, n], within [-1, 1]; the diagonal is 1 (0 for a zero vector).

    >>> cosines(torch.tensor([[4.0, 2.0], [2.0, 4.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    lengths = norms(gram)
    inverse = torch.where(lengths > 0, 1 / lengths, 0)
    return (gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)).clamp(-1, 1)


def norms(gram: Tensor) -> Tensor:
    """Lengths of the n vectors: [..., n, n] to [..., n]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def arc(cosine: Tensor, t: float, straight: Tensor) -> Tensor:
    """Coefficients of two vectors a fraction t along the great circle between them, or along the straight line.

    Args:
        cosine: Of the angle between them, [...], fp64.
        t: 0 is the first vector, 1 the second.
        straight: Whether to take the straight line, [...].

    Returns:
        [..., 2], fp64.
    """
    angle = torch.acos(torch.where(straight, 0, cosine))
    curve = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], -1) / angle.sin().unsqueeze(-1)
    line = torch.tensor([1 - t, t], dtype=cosine.dtype, device=cosine.device)
    return torch.where(straight.unsqueeze(-1), line, curve)
