"""Rows of token ids of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """A batch whose rows all end in its last column, where an answer is read.

    Returns:
        ``input_ids``, ``attention_mask`` and ``position_ids``, each [rows, longest], int64.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """A batch whose rows all begin in its first column, as for training.

    Returns:
        ``input_ids`` and ``attention_mask``, both [rows, longest], int64.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(tokenizer: Any) -> int:
    """The token to fill rows with; it is masked, so any will do."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
