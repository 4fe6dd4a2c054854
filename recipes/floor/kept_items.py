"""Items that only the model can count, such as the tokens above a threshold: the loss is divided by them after a step.

The losses of a step's micro-batches are divided by a number that is known before (``Objective.items``). Only after the
last of them is it known how many items the model kept in all micro-batches and processes. Gradients and loss are then
multiplied by the quotient of the two numbers, so that each kept item weighs the same however the step is split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weightops.errors import WeightopsError


class KeptItems:
    """What the model kept in the micro-batches of the current step."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._shares: list[Tensor] = []

    def add(self, kept: Tensor | None, items: float) -> None:
        """Note a micro-batch: the items that the model kept, and those that its loss is divided by."""
        if kept is not None:
            self._kept.append(kept.float() / items)

    def divide(self, share: Tensor, model: Any, accelerator: Any) -> Tensor:
        """After the backward pass of a micro-batch: its loss, corrected if it is the last of its step.

        The model's gradients are corrected too. Nothing happens where no number was noted.

        Args:
            share: The loss of the micro-batch, divided by all items of the step.
            model: With gradients.
            accelerator: accelerate's; it knows the other processes, and whether the step is at its end.
        """
        if not self._kept:
            return share
        if accelerator.distributed_type == "DEEPSPEED":
            raise WeightopsError(
                "objective: the model decides how many items count, which DeepSpeed cannot divide by; use DDP or FSDP"
            )
        self._shares.append(share)
        if not accelerator.sync_gradients:
            return share
        kept = accelerator.reduce(torch.stack(self._kept).sum(), "sum")
        scale = 1 / kept.where(kept > 0, 1)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale.to(parameter.grad.dtype)
        corrected: Tensor = share + (scale - 1) * torch.stack(self._shares).sum()
        self._kept.clear()
        self._shares.clear()
        return corrected
