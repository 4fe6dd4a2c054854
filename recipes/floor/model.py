"""A model to train: what of it trains, and what stays as it is."""

from __future__ import annotations

import re
from typing import Any

import torch

from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Training

ROWS = "trained_rows"
"""Attribute of a parameter of which only these rows train."""


def prepare(model: Any, training: Training) -> Any:
    """The model with an adapter on it, or with what is frozen frozen.

    Raises:
        WeightopsError: a pattern that finds nothing, or nothing left to train.
    """
    if training.lora:
        return _with_adapter(model, training)
    names = [name for name, _ in model.named_parameters()]
    if idle := [pattern for pattern in training.freeze if not any(re.search(pattern, name) for name in names)]:
        raise WeightopsError(*(f"training.freeze: {pattern!r} finds no parameter of the model" for pattern in idle))
    for name, parameter in model.named_parameters():
        frozen = any(re.search(pattern, name) for pattern in training.freeze)
        parameter.requires_grad_(not frozen or hasattr(parameter, ROWS))
        if frozen and hasattr(parameter, ROWS):
            _train_rows(parameter, getattr(parameter, ROWS))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise WeightopsError("training.freeze: leaves nothing to train; freeze less")
    return model


def _train_rows(parameter: Any, rows: tuple[int, ...]) -> None:
    """Only these rows move: the gradient of the others is zero, and so is AdamW's step (without weight decay)."""
    chosen = torch.zeros(len(parameter), 1)
    chosen[list(rows)] = 1
    parameter.register_hook(lambda gradient: gradient * chosen.to(gradient))


def _with_adapter(model: Any, training: Training) -> Any:
    import peft

    lora = training.lora
    assert lora is not None
    torch.manual_seed(training.seed)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        said = str(error).strip().partition("\n")[0]
        raise WeightopsError(f"training.lora: PEFT refuses it ({said})") from error


def rounded(state: dict[str, torch.Tensor], model: Any, dtype: str) -> dict[str, torch.Tensor]:
    """The weights to write: each rounded once, and of tied ones the one that is read."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    wanted = getattr(torch, dtype)
    return {
        name: (tensor.to(wanted) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
        if name not in tied
    }
