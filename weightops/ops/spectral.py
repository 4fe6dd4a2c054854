"""Merging singular vectors: TSV-M, Iso-C and Iso-CTS.

Matrices only; tensors that are not 2-D are averaged, as in the papers. A direction whose singular value is zero up to
rounding is arbitrary, so it is left out (ours): a low-rank task vector then gives the same result on every machine.
"""

from __future__ import annotations

from typing import Annotated

from .registry import operator
from .signature import Range
from .torch_later import Tensor, torch


@operator(reads="matrix", paper="2412.00081", breaks=("identical",))
def tsv_m(deltas: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """Give each task an equal share of the rank and make the tasks' singular vectors orthogonal.

    Gargiulo et al. 2025, arXiv 2412.00081: the first rank // n singular triples of each task (at least one, ours) are
    put side by side and replaced by the nearest orthonormal vectors.

    Args:
        deltas: Task vectors, [n, out, in], fp32 or fp64.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [out, in].

    >>> tsv_m(torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])).abs()
    tensor([[2., 0.],
            [0., 1.]])
    """
    if deltas.dim() != 3:
        return deltas.mean(0) * lambda_
    share = max(1, min(deltas.shape[1:]) // len(deltas))
    left, values, right = _side_by_side([_svd(delta, share) for delta in deltas])
    return (polar(left) * values) @ polar(right) * lambda_


@operator(reads="matrix", paper="2502.04959", breaks=("identical", "one"))
def iso_c(deltas: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """Add the task vectors and give the sum equal singular values, their mean.

    Marczak et al. 2025, arXiv 2502.04959, Iso-C.

    Args:
        deltas: Task vectors, [n, out, in], fp32 or fp64.
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [out, in].

    >>> iso_c(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])).abs()
    tensor([[2., 0.],
            [0., 2.]])
    """
    if deltas.dim() != 3:
        return deltas.mean(0) * lambda_
    left, values, right = _svd(deltas.sum(0))
    return left @ right * _mean(values) * lambda_


@operator(reads="matrix", paper="2502.04959", breaks=("identical", "one"))
def iso_cts(
    deltas: Tensor, *, common_space_fraction: Annotated[float, Range(0, 1)] = 0.8, lambda_: float = 1.0
) -> Tensor:
    """As Iso-C, but the sum's last directions are replaced by directions of the single tasks.

    Marczak et al. 2025, arXiv 2502.04959, Iso-CTS: the sum keeps its first directions. Each task is projected outside
    their column space, and the first directions of each projection fill the rest of the rank, in equal shares. All are
    made orthogonal and get the mean of the values. With fraction 1, or with one task, this is Iso-C.

    Args:
        deltas: Task vectors, [n, out, in], fp32 or fp64.
        common_space_fraction: Share of the rank that the sum keeps, about (the rest divides by n).
        lambda_: Factor on the whole.

    Returns:
        The merged task vector, [out, in].

    >>> iso_cts(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), common_space_fraction=0.5).abs()
    tensor([[2., 0.],
            [0., 2.]])
    """
    if deltas.dim() != 3:
        return deltas.mean(0) * lambda_
    rank, count = min(deltas.shape[1:]), len(deltas)
    per_task = min(round((rank - int(rank * common_space_fraction)) / count), rank // count)
    common = _svd(deltas.sum(0), rank - per_task * count)
    rest = [_svd(d - common[0] @ (common[0].mT @ d), per_task, scale=d.norm()) for d in deltas]
    left, values, right = _side_by_side([*rest, common])
    return polar(left) @ polar(right) * _mean(values) * lambda_


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns or rows (Procrustes), zero on directions the matrix lacks.

    >>> polar(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).abs()
    tensor([[1., 0.],
            [0., 0.]])
    """
    left, _, right = _svd(matrix)
    return left @ right


Triple = tuple[Tensor, Tensor, Tensor]


def _svd(matrix: Tensor, count: int | None = None, scale: Tensor | None = None) -> Triple:
    """The first singular triples: [out, r], [r], [r, in], without those that are zero up to rounding.

    ``scale`` is the norm of the matrix that this one was computed from, if it is not the same.
    """
    left, values, right = _thin_svd(matrix)
    rounding = 16 * torch.finfo(matrix.dtype).eps * (matrix.norm() if scale is None else scale)
    rank = int((values > rounding).sum())
    kept = rank if count is None else min(count, rank)
    return left[:, :kept], values[:kept], right[:kept]


def _thin_svd(matrix: Tensor) -> Triple:
    """All singular triples. A long matrix is made square by QR first, which takes half the time and is as exact."""
    rows, columns = matrix.shape
    if 2 * rows > 3 * columns:
        basis, square = torch.linalg.qr(matrix)
        left, values, right = torch.linalg.svd(square, full_matrices=False)
        return basis @ left, values, right
    if 2 * columns > 3 * rows:
        left, values, right = _thin_svd(matrix.mT)
        return right.mT, values, left.mT
    return torch.linalg.svd(matrix, full_matrices=False)  # type: ignore[no-any-return]


def _side_by_side(triples: list[Triple]) -> Triple:
    return (
        torch.cat([u for u, _, _ in triples], 1),
        torch.cat([s for _, s, _ in triples]),
        torch.cat([v for *_, v in triples]),
    )


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)
