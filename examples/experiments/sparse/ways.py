"""The nine ways that are compared, and the learning rate at which the search for each begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARAMETERS = 134_515_008
"""Of SmolLM2-135M."""
LORA_PARAMETERS = 610_560
"""Of LoRA of rank 2 on its linear layers without the head; the sparse ways train as many entries."""


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        title: In the page.
        update: As a recipe writes it.
        trained: How many parameters train.
        rate: The learning rate that is tried first.
    """

    title: str
    update: Mapping[str, Any]
    trained: int
    rate: float


def _lora(title: str, rank: int, scale: float) -> Way:
    update = {"kind": "lora", "rank": rank, "alpha": scale * rank}
    return Way(title, update, LORA_PARAMETERS * rank // 2, 5e-4)


def _sparse(title: str, select: str, rate: float = 1e-3) -> Way:
    """A run has 24 steps, so entries are exchanged more often than by default: after steps 8, 14 and 20."""
    density = (LORA_PARAMETERS + 0.5) / PARAMETERS
    update = {"kind": "sparse", "select": select, "density": density, "every": 6, "phase": 2}
    return Way(title, update, LORA_PARAMETERS, rate)


WAYS: Mapping[str, Way] = {
    "full": Way("full", {"kind": "full"}, PARAMETERS, 1.25e-5),
    "lora-2": _lora("LoRA, rank 2", 2, 2.0),
    "lora-8": _lora("LoRA, rank 8", 8, 2.0),
    "rslora-2": _lora("rsLoRA, rank 2", 2, 4.0 / math.sqrt(2)),
    "random": _sparse("fixed random entries", "random"),
    "gradient": _sparse("fixed entries of largest gradient", "gradient"),
    "lift": _sparse("LIFT", "lift"),
    "ag": _sparse("SpIEL-AG", "ag"),
    "ma": _sparse("SpIEL-MA", "ma", 1e-2),
}
"""By name, in the order of the table. rsLoRA scales by alpha / sqrt(rank), here with alpha 4; LoRA by 2."""
FIXED = ("random", "gradient", "lift")
"""Sparse ways whose entries stay: the controls of ``ag`` and ``ma``, which exchange some."""
GROUPS = (("random", "gradient", "lift", "ag", "ma", "lora-2"), ("full", "lora-8", "rslora-2"))
"""The order in which they run."""
