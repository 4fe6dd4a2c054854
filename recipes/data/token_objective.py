"""What all objectives over tokens share: rows, packed or not, as a batch, and the log-probability of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

from weightops.recipes.data.packing import packed_batch
from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.log_probabilities import log_probabilities
from weightops.recipes.floor.objective import Batch, Objective, Row
from weightops.rows.padding import pad_id, right_padded

if TYPE_CHECKING:
    from torch import Tensor

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Tensors of a batch that the model reads; an objective may add others for itself."""


@dataclass(frozen=True)
class TokenObjective(Objective):
    """An objective whose items are the tokens to predict; a subclass gives the loss.

    Rows have ``input_ids``, and may have ``trained``: whether each of them is to be predicted (the first never is), and
    ``segments``: which of the examples packed into the row each belongs to.

    Attributes:
        pad: Token to fill shorter rows with.
        per_token: Fields of rows that have a number for each token; they become tensors beside ``targets``.
    """

    pad: int = field(default=0, metadata=RUNTIME)

    packs: ClassVar[bool] = True
    per_token: ClassVar[tuple[str, ...]] = ()

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Self:
        """With the tokenizer's padding token."""
        return replace(self, pad=pad_id(tokenizer))

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The model's inputs and the tokens to predict.

        ``input_ids`` and ``attention_mask``, [rows, longest - 1], without the last column (for packed rows, what
        :func:`packed_batch` gives), and ``targets``, [rows, longest - 1], -100 where there is nothing to predict. The
        fields of ``per_token`` have that shape too, fp32, the number of a token where it is to be predicted.
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
        others = {name: self._numbers(rows, name, inputs["input_ids"].shape[1])[:, 1:] for name in self.per_token}
        return {**shorter, "targets": targets[:, 1:], **others}

    def _numbers(self, rows: Sequence[Row], name: str, width: int) -> Tensor:
        """A field of ``per_token``, [rows, width], fp32; 0 where a row has no token."""
        import torch

        each = [list(chain(*row[name])) if "segments" in row else list(row[name]) for row in rows]
        return torch.tensor([numbers + [0.0] * (width - len(numbers)) for numbers in each], dtype=torch.float32)

    def items(self, batch: Batch) -> float:
        """Tokens to predict."""
        return int((batch["targets"] != -100).sum())

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """What the model predicts at each position: [rows, longest - 1, vocabulary]."""
        inputs = {name: tensor for name, tensor in batch.items() if name in MODEL_INPUTS}
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    def log_probabilities(self, model: Any, batch: Batch) -> Tensor:
        """The log-probability of each token to predict: [items], fp32, row after row.

        ``weights[batch["targets"] != -100]`` brings other values of shape [rows, longest - 1] into the same order.
        """
        return log_probabilities(self.logits(model, batch), batch["targets"])
