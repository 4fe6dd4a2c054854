"""How trained entries move: by Adam, or by SM3 with one accumulator for each row and column.

Both keep their state by name in a dictionary of tensors. Weight decay is decoupled and acts on what was learned, so it
pulls toward the base model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weightops.recipes.sparsity.weight_gradient import Positions

AGE, MEAN, SQUARE = "age", "mean", "square"
ROWS, COLUMNS = "rows", "columns"


class EntryRule(Protocol):
    """An optimizer for some entries of a matrix."""

    def state(self, learned: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        """The state before the first step."""

    def step(
        self, learned: Tensor, gradient: Tensor, state: Mapping[str, Tensor], positions: Positions, lr: float
    ) -> None:
        """Change what was learned, and the state, in place.

        Args:
            learned: [k].
            gradient: [k].
            state: As :meth:`state` makes it.
            positions: Where the entries are.
        """

    def by_entry(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of the state that belongs to single entries, [k] each: it goes where they go."""


@dataclass(frozen=True)
class EntryAdam:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980, epsilon as at the end of section 2), with an age for each entry.

    The age is the number of gradients in an entry's moments; the bias correction depends on it.

    Attributes:
        weight_decay: Share of the learned value that is subtracted in each step, times the learning rate.
        moments: Dtype of the moments. Ages are int32 and advance whatever it is.
        ageless: As the published code: ages start one later and stay as they are if the moments are bf16.
    """

    weight_decay: float = 0.0
    moments: torch.dtype = torch.float32
    ageless: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def state(self, learned: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        age = torch.zeros_like(learned, dtype=torch.float32 if self.ageless else torch.int32)
        return {AGE: age} | {name: torch.zeros_like(learned, dtype=self.moments) for name in (MEAN, SQUARE)}

    def step(
        self, learned: Tensor, gradient: Tensor, state: Mapping[str, Tensor], positions: Positions, lr: float
    ) -> None:
        first, second = self.betas
        gradient = gradient.to(self.moments)
        mean = state[MEAN].mul_(first).add_(gradient, alpha=1 - first)
        square = state[SQUARE].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        age = state[AGE] + 1
        if not (self.ageless and self.moments == torch.bfloat16):
            state[AGE].copy_(age)
        root = square.sqrt().add_(self.epsilon)
        root.mul_((1 - first**age).to(root.dtype)).div_((1 - second**age).sqrt().to(root.dtype))
        learned.addcdiv_(mean, root, value=-lr)
        learned.mul_(1 - lr * self.weight_decay)

    def by_entry(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    def seeds(self, gradients: Tensor, squares: Tensor, ages: Tensor) -> dict[str, Tensor]:
        """The state that entries of known gradients start with: as if Adam had seen these, all equal to their mean.

        Args:
            gradients: Mean gradient, [c].
            squares: Mean squared gradient, [c].
            ages: How many gradients that was, [c] or one number.
        """
        first, second = self.betas
        age = (ages - 1 if self.ageless else ages).expand_as(gradients)
        return {AGE: age, MEAN: gradients * (1 - first**ages), SQUARE: squares * (1 - second**ages)}


@dataclass(frozen=True)
class EntrySm3:
    """SM3 (Anil et al. 2019, arXiv 1901.11150, SM3-II without momentum): one accumulator for each row and column.

    Attributes:
        weight_decay: Share of the learned value that is subtracted in each step, times the learning rate.
    """

    weight_decay: float = 0.0
    epsilon: float = 1e-8

    def state(self, learned: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        return {ROWS: learned.new_zeros(rows), COLUMNS: learned.new_zeros(columns)}

    def step(
        self, learned: Tensor, gradient: Tensor, state: Mapping[str, Tensor], positions: Positions, lr: float
    ) -> None:
        row, column = positions.flat.long() // positions.columns, positions.flat.long() % positions.columns
        update = torch.minimum(state[ROWS][row], state[COLUMNS][column]).addcmul_(gradient, gradient)
        state[ROWS].scatter_reduce_(0, row, update, "amax")
        state[COLUMNS].scatter_reduce_(0, column, update, "amax")
        learned.addcmul_(update.add_(self.epsilon).rsqrt_(), gradient, value=-lr)
        learned.mul_(1 - lr * self.weight_decay)

    def by_entry(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}
