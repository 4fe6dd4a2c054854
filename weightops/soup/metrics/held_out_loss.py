"""The loss on rows that no model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from ...errors import Message, Remedy, WeightopsError
from ...io.progress import say
from ...rows.encode import encode
from ...rows.padding import pad_id, right_padded
from ...rows.reader import read_rows
from ...rows.row import Row
from ..metric import Metric

if TYPE_CHECKING:
    from ...algebra.checkpoint import Checkpoint

_CHUNK = 1024
"""Tokens whose softmax is in memory at one time."""


@dataclass(frozen=True)
class HeldOutLoss(Metric):
    """Mean cross entropy, in nats, over all tokens to predict of all rows: of answers only, or of whole texts.

    Attributes:
        data: Files of rows: JSON Lines or Parquet.
        max_tokens: Longest row; a longer one is cut at its end.
        batch: Rows in one forward pass.
        plain: Join prompt and completion as they are, without the chat template.
    """

    higher_is_better: ClassVar[bool] = False
    words: ClassVar[str] = "held-out loss"

    max_tokens: int = 1024
    batch: int = 8
    plain: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise WeightopsError(Message(f"{name} must be at least {least}", Remedy("change {}", name)))

    @cached_property
    def _rows(self) -> list[Row]:
        if not self.data:
            raise WeightopsError(Message("no rows to measure the loss on", Remedy("name files of rows as {}", "data")))
        return read_rows(self.data)

    def content(self) -> str:
        """The digest of the rows."""
        return blake3(repr([replace(row, place="") for row in self._rows]).encode("utf-8", "replace")).hexdigest()

    def ready(self, model: Any, tokenizer: Any, models: Sequence[Checkpoint]) -> Callable[[], float]:
        """Encodes the rows, once."""
        rows = encode(tokenizer, self._rows, self.max_tokens, chat=not self.plain, report=say)
        pad = pad_id(tokenizer)

        def measured() -> float:
            total, count = 0.0, 0
            for batch in _batches(rows, self.batch):
                loss, tokens = _loss(model, batch, pad)
                total, count = total + loss, count + tokens
            return total / count

        return measured


def _batches(rows: Sequence[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of like length together."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _loss(model: Any, rows: Sequence[dict[str, Any]], pad: int) -> tuple[float, int]:
    """The summed loss of some rows, in fp32, and the number of tokens that were predicted."""
    import torch

    inputs = right_padded([row["input_ids"] for row in rows], pad)
    learned = right_padded([[int(one) for one in row["trained"]] for row in rows], 0)["input_ids"].bool()
    targets, wanted = inputs["input_ids"][:, 1:], learned[:, 1:]
    with torch.inference_mode():
        moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        logits = model(**moved, use_cache=False).logits[:, :-1][wanted.to(model.device)]
        answers = targets[wanted].to(model.device)
        losses = [
            torch.nn.functional.cross_entropy(some.float(), tokens, reduction="none").double().sum()
            for some, tokens in zip(torch.split(logits, _CHUNK), torch.split(answers, _CHUNK), strict=True)
        ]
    return float(sum(losses)), len(answers)
