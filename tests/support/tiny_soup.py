"""A family of tiny models tuned from one base, and rows to judge them by."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tiny_models as tiny
from safetensors.torch import load_file


def family(folder: Path, names: str = "abc", *, size: float = 0.1) -> Path:
    """Models ``base`` and one for each letter, tuned from it, and ``dev.jsonl`` and ``test.jsonl``."""
    base = tiny.transformer(folder / "base", "llama", tied=True)
    tensors = load_file(base / "model.safetensors")
    for seed, name in enumerate(names):
        tiny.rewrite(tiny.copy(base, folder / name), tiny.perturbed(tensors, seed + 1, size))
    draw = random.Random(0)
    for data in ("dev", "test"):
        rows = [{"prompt": _words(draw, 3), "completion": _words(draw, draw.randrange(1, 6))} for _ in range(8)]
        (folder / f"{data}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(tiny.WORDS[3:], k=count))
