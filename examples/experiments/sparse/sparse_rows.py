"""Short problems of GSM8K: rows to train on, drawn by the seed, and test rows, the same for every seed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from examples.experiments.steps import read_data, write_lines
from weightops.rows.encode import encode
from weightops.rows.row import Row

TOKENS = 160
"""Of the longest row, its chat template included: a third of all rows are no longer."""
TRAIN, TEST = 64, 16
"""Rows; of those to train on, a quarter is held out to choose learning rates by."""


def write(data: Path, folder: Path, tokenizer: Any, seeds: int) -> None:
    """Write ``train-SEED.jsonl`` and ``test.jsonl``, if they are not there.

    Raises:
        WeightopsError: the data is not there.
    """
    for name, source, count in (*((f"train-{seed}", "train", TRAIN) for seed in range(seeds)), ("test", "test", TEST)):
        file = folder / f"{name}.jsonl"
        if not file.exists():
            chosen = random.Random(name).sample(_short(data / "math_gsm8k" / f"{source}.jsonl.gz", tokenizer), count)
            write_lines(chosen, file)


def final_number(text: str) -> str | None:
    """The number that an answer ends in, after ``####``.

    >>> final_number("2 * 600 = 1200\\n#### 1,200")
    '1200'
    """
    match = re.search(r"####\s*\$?(-?[\d,.]+)", text)
    return None if match is None else match[1].replace(",", "").rstrip(".")


def _short(file: Path, tokenizer: Any) -> list[dict[str, str]]:
    """Short problems of a file, without the marks of a calculator; of its rows, several times as many as are used."""
    columns = [row.columns for row in read_data(file, "sparse-training.md")]
    some = random.Random("some").sample(columns, 8 * TRAIN)
    pairs = [{"prompt": c["question"], "completion": re.sub("<<.*?>>", "", c["answer"])} for c in some]
    encoded = encode(tokenizer, [Row.of(file.name, pair) for pair in pairs])
    return [pair for pair, row in zip(pairs, encoded, strict=True) if len(row["input_ids"]) <= TOKENS]
