"""The nine ways that are compared, and the rates that are tried for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LORA_RANK = 2
DENSITY = 610_560 / 134_515_008
"""Of the sparse ways: as many entries as LoRA of rank 2 has parameters on SmolLM2-135M."""

_FULL_RATES = (5e-6, 2e-5, 8e-5)
_ADAPTER_RATES = (1e-4, 4e-4, 1.6e-3)
_SPARSE_RATES = (1e-4, 4e-4, 1.6e-3)
_SM3_RATES = (5e-4, 2e-3, 8e-3)


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: Of its folders and its row in the table.
        title: In the page.
        update: As a recipe writes it.
        rates: Learning rates to choose from.
    """

    name: str
    title: str
    update: dict[str, Any]
    rates: tuple[float, ...]


def _lora(rank: int, scale: float) -> dict[str, Any]:
    return {"kind": "lora", "rank": rank, "alpha": scale * rank}


def _sparse(select: str) -> dict[str, Any]:
    return {"kind": "sparse", "select": select, "density": DENSITY}


WAYS = (
    Way("full", "full", {"kind": "full"}, _FULL_RATES),
    Way("lora-2", "LoRA, rank 2", _lora(LORA_RANK, 2.0), _ADAPTER_RATES),
    Way("lora-8", "LoRA, rank 8 (4 x the parameters)", _lora(8, 2.0), _ADAPTER_RATES),
    Way("rslora-2", "rsLoRA, rank 2", _lora(LORA_RANK, 4.0 / math.sqrt(LORA_RANK)), _ADAPTER_RATES),
    Way("random", "fixed random entries", _sparse("random"), _SPARSE_RATES),
    Way("gradient", "fixed entries of largest gradient", _sparse("gradient"), _SPARSE_RATES),
    Way("lift", "LIFT", _sparse("lift"), _SPARSE_RATES),
    Way("ag", "SpIEL-AG", _sparse("ag"), _SPARSE_RATES),
    Way("ma", "SpIEL-MA", _sparse("ma"), _SM3_RATES),
)
"""rsLoRA scales by alpha / sqrt(rank), here with alpha 4, written as LoRA's alpha / rank."""
