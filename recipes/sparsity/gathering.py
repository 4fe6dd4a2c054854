"""What backward passes tell of a weight's gradient: for the first choice of entries, and for exchanges.

With several processes, all of them see the mean of their gradients, so they choose the same entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from weightops.recipes.sparsity.largest_entries import top_of_blocks
from weightops.recipes.sparsity.weight_gradient import Positions, WeightGradient


def averaged(tensor: Tensor) -> Tensor:
    """The mean over all processes."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensor
    summed = tensor.contiguous()
    distributed.all_reduce(summed)
    return summed / distributed.get_world_size()


class WholeGradient:
    """A whole weight gradient some rows at a time, the mean over all processes; it notes whether all was finite."""

    def __init__(self, gradient: WeightGradient, *, alone: bool = False) -> None:
        self.gradient, self.alone, self.finite = gradient, alone, True

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for first, block in self.gradient.blocks():
            whole = block if self.alone else averaged(block)
            self.finite = self.finite and is_finite(whole)
            yield first, whole


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers only."""
    return bool(tensor.sum().isfinite())


def steepest(gradient: WeightGradient, count: int) -> Tensor | None:
    """The positions of largest gradient, [count], sorted; ``None`` if the gradient is not finite."""
    blocks = WholeGradient(gradient)
    flat, _ = top_of_blocks(blocks, count)
    return flat if blocks.finite else None


def largest_squares(gradient: WeightGradient) -> tuple[Tensor, Tensor] | None:
    """The largest squared gradient of each row and of each column; ``None`` if the gradient is not finite."""
    blocks, rows = WholeGradient(gradient), []
    columns: Tensor | None = None
    for _, block in blocks:
        squares = block.square()
        rows.append(squares.amax(1))
        columns = squares.amax(0) if columns is None else torch.maximum(columns, squares.amax(0))
    return (torch.cat(rows), columns) if blocks.finite and columns is not None else None


class Phase:
    """The gradients of candidates over some steps.

    Candidates are the entries of largest gradient in the first backward pass; later only theirs is computed.

    Args:
        count: How many candidates.
        compat: As the published code: each backward pass counts as one gradient, although it is divided by the passes
            of a step, and each process has candidates of its own.
    """

    def __init__(self, count: int, *, compat: bool = False) -> None:
        self.count, self.compat = count, compat
        self.candidates: Positions | None = None
        self.gradients = self.squares = self.within = torch.empty(0)
        self.samples = self.steps = 0
        self.finite = True

    def __call__(self, gradient: WeightGradient) -> None:
        """Take in one backward pass."""
        if self.candidates is None:
            blocks = WholeGradient(gradient, alone=self.compat)
            flat, here = top_of_blocks(blocks, self.count)
            self.finite = self.finite and blocks.finite
            self.candidates = Positions.of(flat, gradient.rows, gradient.columns)
            self.gradients, self.squares, self.within = (torch.zeros_like(here) for _ in range(3))
        else:
            here = gradient.at(self.candidates)
        self.within += here
        if self.compat:
            self._count()

    def end_step(self, within: Tensor) -> None:
        """End an optimizer step.

        Args:
            within: The candidates' gradient in this step, the mean over all processes.
        """
        self.steps += 1
        if not self.compat:
            self.within = within
            self._count()

    def _count(self) -> None:
        self.finite = self.finite and is_finite(self.within)
        self.gradients += self.within
        self.squares.addcmul_(self.within, self.within)
        self.within = torch.zeros_like(self.within)
        self.samples += 1

    def state(self) -> dict[str, Any]:
        """Everything, between two steps, as tensors and numbers."""
        tensors = {"gradients": self.gradients, "squares": self.squares}
        if self.candidates is not None:
            tensors |= {"candidates": self.candidates.flat}
        return tensors | {"samples": self.samples, "steps": self.steps, "finite": self.finite}

    def restore(self, state: Mapping[str, Any], rows: int, columns: int) -> None:
        """Take over what :meth:`state` gave, for a weight [rows, columns]."""
        self.gradients, self.squares = state["gradients"].clone(), state["squares"].clone()
        self.samples, self.steps, self.finite = state["samples"], state["steps"], state["finite"]
        self.within = torch.zeros_like(self.gradients)
        if "candidates" in state:
            self.candidates = Positions.of(state["candidates"], rows, columns)
