"""What a training minimises. A new objective is one class with these methods, and nothing else to edit.

The loss is a sum over items (tokens, or rows), and the trainer divides by the items of all the micro-batches and
processes of a step: so every item weighs the same however a step is split (the mean of means does not; torchtune issue
2307 found it giving short sequences more weight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]
"""One example: ``input_ids`` and whatever the objective wants beside them."""
Batch = Mapping[str, "Tensor"]


class Objective(Protocol):
    """How rows become a batch, and what of it is minimised and measured."""

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The tensors of some rows."""

    def items(self, batch: Batch) -> int:
        """How many items the loss of a batch is a sum over."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the items of a batch: a scalar with a gradient."""

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """Other measures by name, each summed over the items of a batch."""
