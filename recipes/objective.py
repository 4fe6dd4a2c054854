"""What a training minimises. A new objective is one class with these methods, and nothing else to edit.

The loss is a sum over items (tokens, or rows), and the trainer divides by the items of all the micro-batches and
processes of a step: so every item weighs the same however a step is split (the mean of means does not; torchtune issue
2307 found it giving short sequences more weight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from weightops.guard.prompt import left_padded

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


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of every next token, in fp32: plain language modelling.

    Rows have ``input_ids``, and may have ``trained``: whether each of them is to be predicted (the first never is).

    Attributes:
        pad: Token to fill shorter rows with.
    """

    pad: int = 0

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, both [rows, longest - 1], and ``targets``, the same, -100 for none."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        targets = torch.full((len(rows), width), -100)
        for place, row in enumerate(rows):
            length, own = len(row["input_ids"]), torch.tensor(row["input_ids"])
            trained = torch.tensor(row.get("trained") or [True] * length)
            ids[place, :length], mask[place, :length] = own, 1
            targets[place, :length] = own.where(trained, torch.tensor(-100))
        return {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "targets": targets[:, 1:]}

    def items(self, batch: Batch) -> int:
        """Tokens to predict."""
        return int((batch["targets"] != -100).sum())

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the tokens to predict."""
        import torch

        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """None but the loss."""
        return {}


@dataclass(frozen=True)
class LabelDecision:
    """Cross entropy of the right label at the last position only, in fp32: how a guard answers (arXiv 2509.23381).

    Rows have ``input_ids`` and ``answer``: 0 for safe, 1 for unsafe.

    Attributes:
        labels: Token ids of safe and unsafe.
        pad: Token to fill shorter rows with, on the left.
        over_vocabulary: Against every token, so that the model also learns to say a label when it generates.
    """

    labels: tuple[int, int]
    pad: int = 0
    over_vocabulary: bool = False

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What the model reads, each [rows, longest], and ``answer``, [rows]."""
        import torch

        inputs = left_padded([row["input_ids"] for row in rows], self.pad)
        return {**inputs, "answer": torch.tensor([row["answer"] for row in rows])}

    def items(self, batch: Batch) -> int:
        """Rows."""
        return len(batch["answer"])

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the rows."""
        import torch

        logits, right = self._logits(model, batch), batch["answer"]
        if self.over_vocabulary:
            right = torch.tensor(self.labels, device=right.device)[right]
        else:
            logits = logits[:, list(self.labels)]
        return torch.nn.functional.cross_entropy(logits, right, reduction="sum")

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """``accuracy``: rows whose right label is the likelier of the two."""
        said = self._logits(model, batch)[:, list(self.labels)].argmax(-1)
        return {"accuracy": float((said == batch["answer"]).sum())}

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "answer"}
        found: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        return found
