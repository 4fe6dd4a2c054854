"""What a training minimises: one class in ``objectives/``, named in YAML by its file.

The loss is a sum over items (tokens, rows, or pairs), and the trainer divides by the items of all the micro-batches and
processes of a step: so every item weighs the same however a step is split (the mean of means does not; torchtune issue
2307 found it giving short sequences more weight).

An objective is a frozen dataclass that inherits from :class:`Objective`. Its fields are its parameters in YAML. What
the model or its tokenizer decides (a token id, a frozen copy of the model) is a field with ``metadata=RUNTIME``, which
``ready`` fills in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]
"""One example: the fields that the objective reads, token ids in the first."""
Batch = Mapping[str, "Tensor"]


class Objective(Protocol):
    """How rows become a batch, and what of it is minimised and measured.

    Attributes:
        reads: Fields that every row must have.
        packs: Whether it keeps apart the examples of a packed row, which the row's ``segments`` tell.
    """

    reads: ClassVar[tuple[str, ...]] = ("input_ids",)
    packs: ClassVar[bool] = False

    def ready(self, model: Any, tokenizer: Any) -> Objective:
        """The objective with what it takes from the model, before anything of it moves, and from its tokenizer."""
        return self

    def length(self, row: Row) -> int:
        """How long a row is, in tokens: rows of like length share a batch."""
        return len(row[self.reads[0]])

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The tensors of some rows."""

    def items(self, batch: Batch) -> int:
        """How many items the loss of a batch is a sum over."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the items of a batch: a scalar with a gradient."""

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """Other measures by name, each summed over the items of a batch; none unless an objective has some."""
        return {}
