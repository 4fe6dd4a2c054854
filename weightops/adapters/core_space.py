"""Core Space: the updates of several adapters as small matrices in bases that all of them share.

Source: Core Space merging, arXiv 2509.17786. Nothing here has the size of a weight: the factors are reduced by QR, and
what is decomposed has at most the sum of the adapters' ranks as its sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import ROUNDING, Factors

#: With squared singular values above this share of the largest, the Gram matrix gives a basis that is orthonormal to
#: 1e-10, far below the rounding of the factors that are written (fp32 at best).
WELL_CONDITIONED = 1e-6


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns as combinations of other columns: vectors @ mixing, multiplied only with what is wanted.

    Attributes:
        vectors: [n, m], fp64.
        mixing: [m, k].
    """

    vectors: Tensor
    mixing: Tensor

    def __matmul__(self, matrix: Tensor) -> Tensor:
        return self.vectors @ (self.mixing @ matrix)

    def combined(self, mixing: Tensor) -> Basis:
        """Combinations of these columns, not multiplied out."""
        return Basis(self.vectors, self.mixing @ mixing)


@dataclass(frozen=True)
class CoreSpace:
    """The updates of one weight: update t is left @ cores[t] @ right.T.

    Attributes:
        left: U_B, orthonormal columns, [rows, k].
        right: V_A, orthonormal columns, [columns, l].
        cores: M_t, [adapters, k, l], fp64; zero for an adapter that does not change this weight.
    """

    left: Basis
    right: Basis
    cores: Tensor


def core_space(updates: Sequence[Factors | None]) -> CoreSpace:
    """The updates of one weight in the bases of their stacked factors; nothing is lost.

    Args:
        updates: One for each adapter, ``None`` where it does not change this weight; at least one is there.
    """
    there = [update for update in updates if update is not None]
    ranks = [update.rank for update in there]
    left, rows = _basis(torch.cat([update.left for update in there], 1))
    right, columns = _basis(torch.cat([update.right for update in there]).T)
    small = iter(zip(torch.split(rows, ranks, 1), torch.split(columns, ranks, 1), strict=True))
    cores = torch.zeros(len(updates), len(rows), len(columns), dtype=torch.float64)
    for core, update in zip(cores, updates, strict=True):
        if update is not None:
            b, a = next(small)
            torch.matmul(b, a.T, out=core)
    return CoreSpace(left, right, cores)


def compressed(space: CoreSpace, rank: int) -> CoreSpace:
    """The updates projected onto shared subspaces of at most ``rank`` dimensions on either side.

    Compress-then-Merge (arXiv 2606.03723) leaves open how the subspaces are found. Ours: the directions of the Core
    Space that hold most of all updates together, in squared Frobenius norm (the higher-order SVD of the cores), so
    that it does not matter how an adapter shares its size between its two factors.
    """
    count, rows, columns = space.cores.shape
    beside = space.cores.transpose(0, 1).reshape(rows, count * columns)
    stacked = space.cores.reshape(count * rows, columns)
    left = torch.linalg.svd(beside, full_matrices=False)[0][:, :rank]
    right = torch.linalg.svd(stacked, full_matrices=False)[2][:rank].T
    return CoreSpace(space.left.combined(left), space.right.combined(right), left.T @ space.cores @ right)


def inner_products(updates: Sequence[Factors | None]) -> Tensor:
    """The Gram matrix of the updates, from their factors alone: [adapters, adapters], fp64."""
    gram = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for i, one in enumerate(updates):
        for j, other in enumerate(updates[: i + 1]):
            if one is not None and other is not None:
                gram[i, j] = gram[j, i] = ((one.left.T @ other.left) * (one.right @ other.right.T)).sum()
    return gram


def _basis(vectors: Tensor) -> tuple[Basis, Tensor]:
    """An orthonormal basis of the columns by falling singular value, and the columns in it: [n, k] and [k, m].

    From the eigenvectors of their Gram matrix, which is several times faster than QR; where the columns are nearly
    dependent, whose squares the Gram matrix would round away, from the SVD of the triangle that QR leaves.
    """
    squares, directions = torch.linalg.eigh(vectors.T @ vectors)
    if squares[0] > WELL_CONDITIONED * squares[-1]:
        values, directions = squares.flip(0).sqrt(), directions.flip(1)
        return Basis(vectors, directions / values), values[:, None] * directions.T
    q, r = torch.linalg.qr(vectors)
    u, values, vt = torch.linalg.svd(r, full_matrices=False)
    kept = max(1, int((values > ROUNDING * values[0]).sum()))
    return Basis(q, u[:, :kept]), values[:kept, None] * vt[:kept]
