"""A guard's answer: one label at the last position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from weightops.recipes.floor.components import RUNTIME
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Batch, Objective, Row
from weightops.rows.padding import left_padded, pad_id

if TYPE_CHECKING:
    from torch import Tensor

EVIDENCE = Evidence("measured here", ("2509.23381",), "guard.md")


@dataclass(frozen=True)
class LabelDecision(Objective):
    """Cross entropy of the right label at the last position, in fp32, where a guard answers (arXiv 2509.23381).

    Rows have ``input_ids`` and ``answer``: 0 for safe, 1 for unsafe.

    Attributes:
        labels: Token ids of safe and unsafe.
        pad: Token to fill shorter rows with, on the left.
        over_vocabulary: Compare with all tokens, so that the model also learns to generate a label.
    """

    labels: tuple[int, int] = field(default=(0, 1), metadata=RUNTIME)
    pad: int = field(default=0, metadata=RUNTIME)
    over_vocabulary: bool = False

    reads: ClassVar[tuple[str, ...]] = ("input_ids", "answer")

    def ready(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Objective:
        """With the tokenizer's padding token."""
        return replace(self, pad=pad_id(tokenizer))

    def learnt_tokens(self, row: Row) -> int:
        """The label."""
        return 1

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The model's inputs, each [rows, longest], and ``answer``, [rows]."""
        import torch

        inputs = left_padded([row["input_ids"] for row in rows], self.pad)
        return {**inputs, "answer": torch.tensor([row["answer"] for row in rows])}

    def items(self, batch: Batch) -> float:
        """Rows."""
        return len(batch["answer"])

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Summed over the rows."""
        import torch

        logits, answers = self._logits(model, batch), batch["answer"]
        if self.over_vocabulary:
            answers = torch.tensor(self.labels, device=answers.device)[answers]
        else:
            logits = logits[:, list(self.labels)]
        return torch.nn.functional.cross_entropy(logits, answers, reduction="sum")

    def metrics(self, model: Any, batch: Batch) -> dict[str, float]:
        """``accuracy``: rows whose right label is the more probable of the two."""
        likelier = self._logits(model, batch)[:, list(self.labels)].argmax(-1)
        return {"accuracy": float((likelier == batch["answer"]).sum())}

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "answer"}
        logits: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        return logits
