"""Texts that become unsafe at a known place, made of real requests.

A text is three to eight requests, one a line. All are harmless, or one of them, anywhere, is harmful: such a text is
unsafe once the whole harmful request is there (ours; no public set of long texts says where they become unsafe). The
requests are those of refusal_direction (andyrdt/refusal_direction, ``dataset/splits``); harmful ones are used once.
XSTest's prompts, which only sound unsafe, are a second test of short texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiments.steps import read_data
from weightops.rows.row import Row

REQUESTS = (3, 8)
LONGEST = 250
"""Characters of the longest request that is used; a few test behaviours are whole documents."""
SPLITS = "guard_en_refusal_direction"
LOOKALIKES = "guard_en_xstest/xstest_prompts"


def requests(data: Path, split: str, seed: int, most: int | None = None) -> list[dict[str, Any]]:
    """As many unsafe texts as there are harmful requests (at most ``most``), and as many safe ones, shuffled."""
    draw = random.Random(f"{split}/{seed}")
    harmful, harmless = (_requests(data, f"{kind}_{split}") for kind in ("harmful", "harmless"))
    known = set(_requests(data, "harmful_train")) | set(_requests(data, "harmless_train")) if split != "train" else ()
    harmful, harmless = ([request for request in kind if request not in known] for kind in (harmful, harmless))
    chosen = draw.sample(harmful, min(most or len(harmful), len(harmful)))
    rows = []
    for request in chosen:
        rows += [_unsafe(draw, harmless, request), _safe(draw, harmless)]
    draw.shuffle(rows)
    return rows


def lookalikes(data: Path) -> list[dict[str, Any]]:
    """XSTest (CC BY 4.0): prompts that are safe but sound unsafe, and their unsafe contrasts."""
    return [{"text": row.prompt, "label": row.label} for row in _read(data, LOOKALIKES)]


def _safe(draw: random.Random, harmless: Sequence[str]) -> dict[str, Any]:
    return {"text": "\n".join(draw.sample(harmless, draw.randint(*REQUESTS))), "label": "safe"}


def _unsafe(draw: random.Random, harmless: Sequence[str], request: str) -> dict[str, Any]:
    others = draw.sample(harmless, draw.randint(*REQUESTS) - 1)
    place = draw.randint(0, len(others))
    before = "\n".join([*others[:place], request])
    text = "\n".join([before, *others[place:]])
    return {"text": text, "label": "unsafe", "first_unsafe_char": len(before) - 1}


def _requests(data: Path, name: str) -> list[str]:
    unique = dict.fromkeys(" ".join(row.columns["instruction"].split()) for row in _read(data, f"{SPLITS}/{name}"))
    return [request for request in unique if 0 < len(request) <= LONGEST]


def _read(data: Path, name: str) -> list[Row]:
    return read_data(data / f"{name}.jsonl.gz", "guard.md")
