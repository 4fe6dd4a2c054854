"""Training changes the weights themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightops.errors import WeightopsError
from weightops.recipes.floor.model import ROWS
from weightops.recipes.floor.update import Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Full(Update):
    """Train every parameter that is not frozen, and of a frozen one with ``ROWS`` those rows."""

    def prepare(self, model: Any, frozen: frozenset[str], seed: int) -> Any:
        """The model, with gradients only for what trains."""
        for name, parameter in model.named_parameters():
            rows = getattr(parameter, ROWS, None)
            parameter.requires_grad_(name not in frozen or rows is not None)
            if name in frozen and rows is not None:
                _train_rows(parameter, rows)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise WeightopsError("training.freeze: every parameter is frozen, so nothing is left to train; freeze less")
        return model

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """A Hugging Face folder."""
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())  # save_pretrained writes the dtype of the model in memory
        file.write_text(json.dumps({**config, "dtype": save_dtype}, indent=2) + "\n")


def _train_rows(parameter: Any, rows: tuple[int, ...]) -> None:
    """Train only these rows: the gradient of the others is zero, and so is AdamW's step (without weight decay)."""
    import torch

    chosen = torch.zeros(len(parameter), 1)
    chosen[list(rows)] = 1
    parameter.register_hook(lambda gradient: gradient * chosen.to(gradient))
