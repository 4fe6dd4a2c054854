"""The two factors of a low-rank update, read and checked, in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import dtypes
from ..errors import WeightopsError, short
from ..io.adapter import LowRankUpdate
from ..io.safetensors import StoredTensor

#: Singular values below this share of the largest are rounding of fp64 and count as zero.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Factors:
    """The product left @ right, whose rank is at most that of its factors.

    Attributes:
        left: B with the adapter's scale in it, [rows, rank].
        right: A, [rank, columns].
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def read_factors(update: LowRankUpdate) -> Factors:
    """An update's factors as PEFT multiplies them, B @ A, fp64; of an embedding or a Conv1D that is the transpose.

    Raises:
        WeightopsError: a factor holds NaN or Inf, or is not stored as floats.
    """
    return Factors(read_tensor(update.left).double() * update.scale, read_tensor(update.right).double())


def read_tensor(tensor: StoredTensor) -> Tensor:
    """A stored tensor, whole, in its own dtype.

    Raises:
        WeightopsError: it holds NaN or Inf, is not stored as floats, or its file ended early.
    """
    where = f"{tensor.file}: {short(tensor.name)}"
    if tensor.dtype not in dtypes.FLOATS:
        raise WeightopsError(
            f"{where} is stored as {tensor.dtype}; only {', '.join(dtypes.FLOATS)} can be computed with"
        )
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.offset)
        raw = bytearray(stream.read(tensor.nbytes))
    if len(raw) != tensor.nbytes:
        raise WeightopsError(f"{tensor.file}: ended early; it was changed while it was read, run again")
    if not raw:
        raise WeightopsError(f"{where} has no elements; save the adapter again")
    values = torch.frombuffer(raw, dtype=getattr(torch, dtypes.TO_TORCH[tensor.dtype])).reshape(tensor.shape)
    if not torch.isfinite(values).all():
        raise WeightopsError(f"{where} holds NaN or Inf; train the adapter again, or leave it out")
    return values


class Columns(Protocol):
    """Columns that can be combined: a matrix, or :class:`~.core_space.Basis`."""

    def __matmul__(self, matrix: Tensor, /) -> Tensor: ...


def split(left: Columns, core: Tensor, right: Columns, rank: int | None = None) -> Factors:
    """left @ core @ right.T as balanced factors of the least rank, or of at most ``rank``.

    The core is split by its SVD, and each factor gets the root of the singular values, so that both have one size.

    Args:
        left: Orthonormal columns, [rows, k].
        core: [k, l], fp64.
        right: Orthonormal columns, [columns, l].
        rank: Of the best approximation (Eckart and Young 1936); ``None`` loses nothing.
    """
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    kept = max(1, int((values > ROUNDING * values[0]).sum()))
    kept = kept if rank is None else min(kept, rank)
    roots = values[:kept].sqrt()
    return Factors(left @ (u[:, :kept] * roots), (right @ (vt[:kept].T * roots)).T)
