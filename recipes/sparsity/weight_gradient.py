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
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 1 << 20
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
        inputs = self.inputs.to(self.outputs.dtype)
        for first in self._first_rows:
            yield first, _at_least_fp32(self.outputs[:, first : first + self._first_rows.step].T @ inputs)

    @property
    def _first_rows(self) -> range:
        return range(0, self.rows, max(1, BLOCK // self.columns))

    @cached_property
    def _turned(self) -> tuple[Tensor, Tensor]:
        """Both factors as torch's SDDMM reads them, one output or input a row. To copy them is most of its work."""
        outputs = _at_least_fp32(self.outputs)
        return outputs.T.contiguous(), self.inputs.to(outputs.dtype).T.contiguous()

    def _sampled(self, positions: Positions) -> Tensor:
        outputs, inputs = self._turned
        pattern = positions.pattern.to(outputs.dtype)
        sampled: Tensor = torch.sparse.sampled_addmm(pattern, outputs, inputs.T, beta=0.0).values()
        return sampled

    def _gathered(self, positions: Positions) -> Tensor:
        flat = positions.flat.long()
        starts = torch.tensor([*self._first_rows, self.rows], device=flat.device) * self.columns
        bounds = pairwise(torch.searchsorted(flat, starts).tolist())  # once for all blocks: a GPU waits for it
        return torch.cat(
            [
                block.reshape(-1)[flat[begin:end] - first * self.columns]
                for (first, block), (begin, end) in zip(self.blocks(), bounds, strict=True)
            ]
        )


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
