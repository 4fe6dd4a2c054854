"""A model to train: which parameters are frozen, and its weights rounded for writing."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weightops.anatomy.groups import group_of
from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import PARTS, Training

if TYPE_CHECKING:
    import torch

ROWS = "trained_rows"
"""Attribute of a parameter: the only rows of it that train, even if it is frozen."""


def prepare(model: Any, training: Training) -> Any:
    """The model made ready by the training's update.

    Raises:
        WeightopsError: a pattern that matches no parameter, nothing left to train, or an update that does not fit.
    """
    return training.update.prepare(model, frozen_names(model, training.freeze or ()), training.seed)


def frozen_names(model: Any, freeze: Sequence[str]) -> frozenset[str]:
    """Names of the parameters to freeze; a tied one is frozen under all its names.

    Args:
        model: With named parameters.
        freeze: Parts of the model, or regular expressions.

    Raises:
        WeightopsError: an expression that matches no parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    patterns = [pattern for pattern in freeze if pattern not in PARTS]
    if idle := [pattern for pattern in patterns if not any(re.search(pattern, name) for name in parameters)]:
        raise WeightopsError(*(f"training.freeze: {_idle(pattern)}" for pattern in idle))
    frozen = {
        id(parameter)
        for name, parameter in parameters.items()
        if any(group_of(name) == each if each in PARTS else re.search(each, name) for each in freeze)
    }
    return frozenset(name for name, parameter in parameters.items() if id(parameter) in frozen)


def _idle(pattern: str) -> str:
    close = difflib.get_close_matches(pattern, PARTS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"parts are {', '.join(PARTS)}"
    return f"{pattern!r} matches no parameter of the model ({hint})"


def rounded(state: dict[str, torch.Tensor], model: Any, dtype: str) -> dict[str, torch.Tensor]:
    """The weights to write: each rounded once, and only one of those that are tied."""
    import torch

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    target_dtype = getattr(torch, dtype)
    return {
        name: (tensor.to(target_dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
        if name not in tied
    }


def device_of_process() -> torch.device:
    """Where this process trains: the CPU if ``accelerate launch`` says so or there is nothing else."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
