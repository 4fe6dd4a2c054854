"""The leading singular vectors of one large matrix.

Randomised block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477, algorithm 2), which also finds the vectors of
a flat spectrum, as that of a fully tuned model's change. Ours: how many extra columns and blocks, and that the start is
drawn by the tensor's name, so that neither order nor threads matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.draw import key

#: Columns of the start beyond the wanted rank, and how often the matrix and its transpose are applied to them.
OVERSAMPLING = 16
ITERATIONS = 3
#: First rank that is tried for a share of energy; it is doubled until the share is reached.
FIRST_RANK = 16
#: A share of energy counts as reached this little below it: the fp32 sums behind it are no more exact.
SLACK = 1e-6
_ROWS = 1024  # of a matrix that are squared at a time


@dataclass(frozen=True)
class Leading:
    """Singular vectors and values, the largest first: left [rows, k], values [k], right [columns, k], fp32."""

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, rank: int) -> Leading:
        """The first ``rank`` of them."""
        return Leading(self.left[:, :rank], self.values[:rank], self.right[:, :rank])

    @property
    def energy(self) -> float:
        """The squared Frobenius norm of what they hold."""
        return float(self.values.double().square().sum())


def squared_norm(matrix: Tensor) -> float:
    """The squared Frobenius norm, summed in fp64 a few rows at a time; of a tensor of any shape."""
    flat = matrix.reshape(len(matrix), -1) if matrix.dim() > 1 else matrix.reshape(1, -1)
    return sum(float(flat[at : at + _ROWS].double().square().sum()) for at in range(0, len(flat), _ROWS))


def leading(matrix: Tensor, rank: int, name: str) -> Leading:
    """The first ``rank`` singular vectors of a matrix, fewer where it has fewer rows or columns.

    Args:
        matrix: fp32.
        name: Draws the start.
    """
    least = min(matrix.shape)
    width = rank + OVERSAMPLING
    whole = (1 + ITERATIONS) * width >= least
    return (_exact(matrix) if whole else _randomised(matrix, width, name)).first(min(rank, least))


def leading_by_energy(matrix: Tensor, share: float, most: int | None, name: str) -> Leading:
    """The fewest leading singular vectors that hold a share of the squared norm, or ``most`` where those hold less.

    Args:
        share: In (0, 1].
    """
    needed = squared_norm(matrix) * (share - SLACK)
    limit = min(*matrix.shape, most or min(matrix.shape))
    rank = min(FIRST_RANK, limit)
    while True:
        result = leading(matrix, rank, name)
        held = result.values.double().square().cumsum(0)
        if held[-1] >= needed or rank == limit:
            return result.first(min(int((held < needed).sum()) + 1, limit))
        rank = min(2 * rank, limit)


def _randomised(matrix: Tensor, width: int, name: str) -> Leading:
    generator = torch.Generator().manual_seed(key(0, name, 0) >> 1)
    start = torch.randn(matrix.shape[1], width, generator=generator)
    blocks = [torch.linalg.qr(matrix @ start)[0]]
    for _ in range(ITERATIONS):
        blocks.append(torch.linalg.qr(matrix @ (matrix.T @ blocks[-1]))[0])
    basis = torch.linalg.qr(torch.cat(blocks, 1))[0]
    return _in_subspace(basis, basis.T @ matrix)


def _exact(matrix: Tensor) -> Leading:
    """By QR to a square first, so that the SVD is that of the shorter side."""
    if matrix.shape[0] < matrix.shape[1]:
        flipped = _exact(matrix.T)
        return Leading(flipped.right, flipped.values, flipped.left)
    q, r = torch.linalg.qr(matrix)
    return _in_subspace(q, r)


def _in_subspace(basis: Tensor, projected: Tensor) -> Leading:
    """The SVD of basis @ projected, [rows, k] @ [k, columns], from that of a [k, k] matrix."""
    q, r = torch.linalg.qr(projected.T)
    u, values, vt = torch.linalg.svd(r.T)
    return Leading(basis @ u, values, q @ vt.T)
