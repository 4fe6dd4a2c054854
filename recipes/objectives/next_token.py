"""Plain language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from weightops.recipes.data.packing import packed_batch
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.objective import Batch, Objective, Row
from weightops.rows.padding import pad_id, right_padded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross entropy of every next token, in fp32: plain language modelling.

    Rows have ``input_ids``, and may have ``trained``: whether each of them is to be predicted (the first never is), and
    ``segments``: which of the examples packed into the row each belongs to.

    Attributes:
        pad: Token to fill shorter rows with.
    """

    pad: int = field(default=0, metadata=RUNTIME)

    packs: ClassVar[bool] = True

    def ready(self, model: Any, tokenizer: Any) -> Objective:
        """With the tokenizer's token to fill rows with."""
        return replace(self, pad=pad_id(tokenizer))

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What the model reads, without the last column: ``input_ids`` and ``attention_mask``, [rows, longest - 1].

        Beside them ``targets``, the same shape, -100 for none. Packed rows: as :func:`packed_batch` makes them.
        """
        import torch

        packed = any("segments" in row for row in rows)
        inputs = packed_batch(rows, self.pad) if packed else right_padded([row["input_ids"] for row in rows], self.pad)
        targets = torch.full(inputs["input_ids"].shape, -100)
        for place, row in enumerate(rows):
            ids = torch.tensor(row["input_ids"])
            trained = torch.tensor(row.get("trained") or [True] * len(ids))
            targets[place, : len(ids)] = ids.where(trained, torch.tensor(-100))
        shorter = {
            name: tensor[..., :-1, :-1] if tensor.ndim == 4 else tensor[:, :-1] for name, tensor in inputs.items()
        }
        return {**shorter, "targets": targets[:, 1:]}

    def items(self, batch: Batch) -> int:
        """Tokens to predict."""
        return int((batch["targets"] != -100).sum())

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        import torch

        inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
        logits = model(**inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )
