"""What training minimises: one class in ``objectives/``, named in YAML by its file.

The loss is a sum over items (tokens, rows, or pairs), and the trainer divides by the items of all the micro-batches and
processes of a step. So every item weighs the same however a step is split. A mean of means would give items of short
sequences more weight (torchtune issue 2307).

An objective is a frozen dataclass that inherits from :class:`Objective`. Its fields are its parameters in YAML. What
the model, its tokenizer or the rows decide (a token id, a frozen copy of the model, a number kept for each row) is a
field with ``metadata=RUNTIME``, which ``ready`` fills in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from weightops.rows.row import Row as DataRow
from weightops.rows.row import is_number, short

if TYPE_CHECKING:
    from torch import Tensor

    from weightops.rows.chat import Tokens
    from weightops.rows.encode import TokensOf

Row = Mapping[str, Any]
"""One example: the fields that the objective reads, token ids in the first."""
Batch = Mapping[str, "Tensor"]

ROW_INDEX = "row_index"
"""Field that the trainer adds to each row to train on: its index among them. Held-out rows do not have it."""


class Objective(Protocol):
    """How rows become a batch, and what of it is minimised and measured.

    Attributes:
        reads: Fields that every row must have.
        columns: Columns of the data that fields of ``reads`` are made from; without any, those of ``reads`` themselves,
            besides tokens.
        packs: Whether it keeps apart the examples of a packed row, which the row's ``segments`` tell.
    """

    reads: ClassVar[tuple[str, ...]] = ("input_ids",)
    columns: ClassVar[tuple[str, ...]] = ()
    packs: ClassVar[bool] = False

    def problems(self, row: DataRow) -> Iterator[str]:
        """What keeps a row of the data from being learned by this objective: by default, columns without a number."""
        for name in columns_of(self):
            if not is_number(row.columns.get(name)):
                yield f"{name}: must be a number; found {short(row.columns.get(name))}"

    def fields(self, row: DataRow, tokens: Tokens, tokens_of: TokensOf) -> Mapping[str, Any]:
        """What the row to train on holds besides tokens: by default, the columns as they are.

        Args:
            row: As the data holds it, without problems.
            tokens: Its tokens, cut to the length that is trained.
            tokens_of: Makes tokens of another row, in the same way.

        Raises:
            WeightopsError: the row and its tokens do not fit together.
        """
        return {name: row.columns[name] for name in columns_of(self)}

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

        A resumed run continues with the number after the last step that was saved.
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

    def loss_and_items(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss, and how many items it sums over where only the model can tell: a scalar; else ``None``.

        Where it is not ``None``, the loss is first divided by ``items``, which must then be an upper bound, and at the
        end of the step by the number itself.
        """
        return self.loss(model, batch), None

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """Other measures by name, each summed over the items of a batch; none unless an objective has some."""
        return {}


def columns_of(objective: Objective) -> list[str]:
    """The columns of the data that an objective reads besides tokens."""
    return list(objective.columns or (name for name in objective.reads if name not in ("input_ids", "trained")))
