"""What training minimises: one class in ``objectives/``, named in YAML by its file.

The loss is a sum over items (tokens, rows, or pairs), and the trainer divides by the items of all the micro-batches and
processes of a step. So every item weighs the same however a step is split. A mean of means would give items of short
sequences more weight (torchtune issue 2307).

An objective is a frozen dataclass that inherits from :class:`Objective`. Its fields are its parameters in YAML. What
the model, its tokenizer or the rows decide (a token id, a frozen copy of the model, a number kept for each row) is a
field with ``metadata=RUNTIME``, which ``ready`` fills in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Row = Mapping[str, Any]
"""One example: the fields that the objective reads, token ids in the first."""
Batch = Mapping[str, "Tensor"]

ROW_INDEX = "row_index"
"""Field that the trainer adds to each row to train on: its index among them. Held-out rows do not have it."""


class Objective(Protocol):
    """How rows become a batch, and what of it is minimised and measured.

    Attributes:
        reads: Fields that every row must have. A routine passes on the columns of the data that are named here.
        packs: Whether it keeps apart the examples of a packed row, which the row's ``segments`` tell.
    """

    reads: ClassVar[tuple[str, ...]] = ("input_ids",)
    packs: ClassVar[bool] = False

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Objective:
        """The objective with what it takes from the untrained model, its tokenizer and the rows to train on."""
        return self

    def state(self) -> Mapping[str, Tensor]:
        """Tensors that ``loss`` changes in place while the model trains, by name; none unless an objective has some.

        They are saved in every checkpoint and restored from it. With several processes, what each adds to them in a
        micro-batch is added up, so that all processes hold the same values: keep sums, or one value for each row.
        """
        return {}

    def begin_step(self, step: int) -> None:
        """Told the number of each step before its batches, counted from 0; the same in all processes.

        A run that is resumed goes on with the number after the last step that was saved.
        """
        return None

    def length(self, row: Row) -> int:
        """How long a row is, in tokens: rows of like length share a batch."""
        return len(row[self.reads[0]])

    def learnt_tokens(self, row: Row) -> int:
        """How many tokens of a row the loss is on: the ``trained`` ones, without the first, which nothing predicts."""
        trained = row.get("trained") or [True] * self.length(row)
        return sum(trained[1:])

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The tensors of some rows."""

    def items(self, batch: Batch) -> float:
        """What the loss of a batch is divided by: how many items it sums over, or the sum of their weights."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the items of a batch: a scalar with a gradient."""

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """Other measures by name, each summed over the items of a batch; none unless an objective has some."""
        return {}


def columns_of(objective: Objective) -> list[str]:
    """The columns of the data that an objective reads besides tokens."""
    return [name for name in objective.reads if name not in ("input_ids", "trained")]
