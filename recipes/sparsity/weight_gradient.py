"""The gradient of a linear layer's weight, of which only the wanted entries are computed.

Where n tokens pass through a layer, the gradient is ``outputs.T @ inputs``, as large as the weight and as costly as the
layer itself. On a CPU its entries at some positions are computed alone (SDDMM, ``torch.sparse.sampled_addmm``). A GPU
has no SDDMM for bf16 and is fast at dense products: there some rows at a time are computed in full, and the entries
are gathered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 1 << 22
"""Elements of the largest piece of a gradient that is in memory at a time."""


@dataclass(frozen=True, eq=False)
class Positions:
    """Some entries of a matrix.

    Attributes:
        flat: Flat positions in C order, [k], sorted, each once; int32 where they fit.
        rows: Of the matrix.
        columns: Of the matrix.
    """

    flat: Tensor
    rows: int
    columns: int

    @classmethod
    def of(cls, flat: Tensor, rows: int, columns: int) -> Positions:
        """Positions of any integer dtype, sorted already, in the narrowest that holds them."""
        return cls(
            flat.to(torch.int32 if rows * columns <= torch.iinfo(torch.int32).max else torch.int64), rows, columns
        )

    def __len__(self) -> int:
        return len(self.flat)

    @cached_property
    def pattern(self) -> Tensor:
        """The same positions as a sparse CSR matrix; its values mean nothing."""
        starts = torch.arange(self.rows + 1, device=self.flat.device) * self.columns
        begins = torch.searchsorted(self.flat, starts.to(self.flat.dtype), out_int32=self.flat.dtype == torch.int32)
        values = torch.zeros((), device=self.flat.device).expand(len(self))
        with warnings.catch_warnings():  # torch says once that its CSR tensors are new
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(
                begins, self.flat % self.columns, values, (self.rows, self.columns), check_invariants=False
            )


class WeightGradient:
    """The gradient of a weight [rows, columns] of a linear layer, computed where it is asked for.

    Args:
        outputs: Gradient of the layer's outputs, [n, rows].
        inputs: The layer's inputs, [n, columns].
    """

    def __init__(self, outputs: Tensor, inputs: Tensor) -> None:
        self.outputs, self.inputs = outputs, inputs
        self.rows, self.columns = outputs.shape[1], inputs.shape[1]

    def at(self, positions: Positions) -> Tensor:
        """The entries at some positions: [k], fp32 (fp64 where the layer is)."""
        if self.outputs.device.type == "cpu":
            return self._sampled(positions)
        return self._gathered(positions)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """All of it, some rows at a time: the first row and [some, columns], fp32 or fp64."""
        step = max(1, BLOCK // self.columns)
        inputs = self.inputs.to(self.outputs.dtype)
        for first in range(0, self.rows, step):
            yield first, _at_least_fp32(self.outputs[:, first : first + step].T @ inputs)

    def _sampled(self, positions: Positions) -> Tensor:
        outputs, inputs = _at_least_fp32(self.outputs), _at_least_fp32(self.inputs)
        pattern = positions.pattern.to(outputs.dtype)
        sampled: Tensor = torch.sparse.sampled_addmm(pattern, outputs.T, inputs.to(outputs.dtype), beta=0.0).values()
        return sampled

    def _gathered(self, positions: Positions) -> Tensor:
        flat, pieces = positions.flat.long(), []
        for first, block in self.blocks():
            bounds = torch.tensor([first, first + len(block)], device=flat.device) * self.columns
            begin, end = torch.searchsorted(flat, bounds).tolist()
            pieces.append(block.reshape(-1)[flat[begin:end] - first * self.columns])
        return torch.cat(pieces)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
