"""Methods that are linear combinations: coefficients from inner products, then one weighted sum.

For slerp, nuslerp, multislerp, karcher and model_stock the result is in the span of the inputs, and its coefficients
depend on the n x n matrix of their inner products, the Gram matrix (ours). The matrix is small and a sum over slices,
and in fp64 it gives more digits of the coefficients than fp32 arithmetic on the tensors themselves.

The inputs are the first argument. ``slerp`` needs a base and puts it before the model. In ``nuslerp`` and
``multislerp`` a base is optional: it is subtracted from the models first and added back at the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .torch_later import Tensor, torch

#: Inner products of the inputs, [n, n] or [..., n, n], or coefficients of them, [n] or [..., n]; fp64.
Doubles = npt.NDArray[np.float64]


def gram(stack: Tensor) -> Doubles:
    """Inner products of n vectors, or of n rows at each of several places.

    Args:
        stack: [n, ..., length].

    Returns:
        [..., n, n].

    >>> gram(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    array([[25.,  3.],
           [ 3.,  1.]])
    """
    rows = stack.double().movedim(0, -2)
    products: Doubles = (rows @ rows.transpose(-1, -2)).cpu().numpy()
    return products


def mix(coefficients: Doubles, stack: Tensor) -> Tensor:
    """Sum of coefficient times vector.

    Args:
        coefficients: [n], or [..., n] for n rows at each of several places.
        stack: [n, ..., length].

    Returns:
        [..., length], the stack's dtype.

    >>> mix(np.array([2.0, 1.0]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([7., 8.])
    """
    factors = torch.from_numpy(coefficients).movedim(-1, 0).to(stack.dtype).to(stack.device)
    return (factors.reshape(*factors.shape, *[1] * (stack.dim() - factors.dim())) * stack).sum(0)


def cosines(gram: Doubles) -> Doubles:
    """Cosines between n vectors; a zero vector counts as orthogonal to all.

    Args:
        gram: [..., n, n].

    Returns:
        [..., n, n], within [-1, 1]; the diagonal is 1 (0 for a zero vector).

    >>> cosines(np.array([[4.0, 2.0], [2.0, 4.0]]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    lengths = norms(gram)
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.clip(gram * inverse[..., :, None] * inverse[..., None, :], -1, 1)


def norms(gram: Doubles) -> Doubles:
    """Lengths of the n vectors: [..., n, n] to [..., n]."""
    squares: Doubles = np.diagonal(gram, axis1=-2, axis2=-1).clip(min=0)
    return np.sqrt(squares)


def arc(cosine: Doubles, t: float, straight: npt.NDArray[np.bool_]) -> Doubles:
    """Coefficients of two vectors a fraction t along the great circle between them, or along the straight line.

    Args:
        cosine: Of the angle between them, [...].
        t: 0 is the first vector, 1 the second.
        straight: Whether to take the straight line, [...].

    Returns:
        [..., 2].
    """
    angle = np.arccos(np.where(straight, 0, cosine))
    curve = np.stack([np.sin((1 - t) * angle), np.sin(t * angle)], -1) / np.sin(angle)[..., None]
    return np.where(straight[..., None], [1 - t, t], curve)
