"""The rows: instructions of three sources to train on, the task; and three sets that no run is trained on, the rest.

Every set is public (docs/disperse-then-merge.md names origin and licence). Only short single-turn rows are used, so
that a run takes minutes on two cores.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.experiments.steps import read_data
from weightops.rows.row import Row

SOURCES = {
    "roleplay": "instruct_en_roleplay/roleplay",
    "code": "code_gpteacher_codegen/codegen-instruct",
    "help": "preference_hh_helpful/helpful-base_test",
}
REST = {
    "GSM8K": "math_gsm8k/test",
    "TruthfulQA": "knowledge_truthfulqa/TruthfulQA",
    "MBPP": "code_mbpp/mbpp",
}
CHARACTERS = (40, 500)
"""Of a completion to train on; and prompt and completion together have at most the larger number."""

TRAIN, TEST, CHOICE = 40, 12, 6
"""Rows of each source to train on, to test on, and for the soup to choose by."""
COUNTS = {"GSM8K": 9, "TruthfulQA": 30, "MBPP": 12}
"""Rows of each set of the rest."""

Example = dict[str, Any]


def train(data: Path, seed: int) -> list[Example]:
    """Rows to train on, drawn by the seed, the sources mixed."""
    draw = random.Random(f"train/{seed}")
    rows = [row for name in SOURCES for row in draw.sample(_source(data, name)[TEST + CHOICE :], TRAIN)]
    draw.shuffle(rows)
    return rows


def task(data: Path) -> list[Example]:
    """Held-out rows of the same sources, the same for every seed."""
    return [row for name in SOURCES for row in _source(data, name)[:TEST]]


def choice(data: Path) -> list[Example]:
    """Further held-out rows of the sources: a greedy soup chooses by them."""
    return [row for name in SOURCES for row in _source(data, name)[TEST : TEST + CHOICE]]


def rest(data: Path, name: str) -> list[Example]:
    """Rows of a set that no run is trained on."""
    rows = [
        {"prompt": question, "completion": answer} for question, answer in map(_PAIRS[name], _read(data, REST[name]))
    ]
    return random.Random(f"rest/{name}").sample(rows, COUNTS[name])


def _source(data: Path, name: str) -> list[Example]:
    """All short rows of a source, without repeated prompts, in an order that never changes."""
    pairs = {
        prompt: completion
        for prompt, completion in map(_PAIRS[name], _read(data, SOURCES[name]))
        if _fits(prompt, completion)
    }
    rows = [
        {"prompt": prompt, "completion": completion, "source": name} for prompt, completion in sorted(pairs.items())
    ]
    random.Random(f"held out/{name}").shuffle(rows)
    return rows


def _fits(prompt: str, completion: str) -> bool:
    least, most = CHARACTERS
    return len(completion) >= least and len(prompt) + len(completion) <= most


def _read(data: Path, name: str) -> list[Row]:
    return read_data(data / f"{name}.jsonl.gz", "disperse-then-merge.md")


def _instruction(row: Row, answer: str) -> tuple[str, str]:
    instruction, given = (str(row.columns.get(name) or "").strip() for name in ("instruction", "input"))
    return f"{instruction}\n\n{given}".strip(), str(row.columns[answer]).strip()


def _dialogue(row: Row) -> tuple[str, str]:
    """The question and the better answer; an empty answer, which does not fit, where there are more turns."""
    turns = [turn.strip() for turn in re.split(r"\n\n(?:Human|Assistant):", str(row.chosen))[1:]]
    return (turns[0], turns[1]) if len(turns) == 2 else ("", "")


_PAIRS: Mapping[str, Callable[[Row], tuple[str, str]]] = {
    "roleplay": lambda row: _instruction(row, "output"),
    "code": lambda row: _instruction(row, "response"),
    "help": _dialogue,
    "GSM8K": lambda row: (row.columns["question"], re.sub("<<.*?>>", "", row.columns["answer"])),
    "TruthfulQA": lambda row: (row.columns["Question"], row.columns["Best Answer"]),
    "MBPP": lambda row: (str(row.text), row.columns["code"].replace("\r\n", "\n").replace("\t", "    ")),
}
