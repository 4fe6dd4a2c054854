"""Rows of two skills: calls of tools, and word problems with two right answers each."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.experiments.steps import read_data
from weightops.rows.encode import encode
from weightops.rows.row import Row

CALLS, PROBLEMS = "tool_bfcl_v4/multiple", "math_gsm8k/test"
"""Of the Berkeley Function-Calling Leaderboard (Apache-2.0), and of GSM8K (MIT): the split that also has the answers of
its Socratic form, which asks a question before each step."""
TOKENS = 180
"""Of the longest row, its chat template included."""
TRAIN, TEST_CALLS, TEST_PROBLEMS = 48, 30, 12
"""Rows to train on, and to test on; test problems have two answers each."""

Example = dict[str, Any]


def calls(data: Path, tokenizer: Any) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and test rows: a request with two to four tools, and the call of one of them."""
    gold = {row["id"]: row["ground_truth"] for row in _columns(data, f"{CALLS}_answers")}
    pairs = [_call(row, gold[row["id"]]) for row in _columns(data, CALLS)]
    rows = _shuffled([row for row in pairs if _fits(tokenizer, row["prompt"], row["completion"])], "calls")
    return rows[TEST_CALLS:], rows[:TEST_CALLS]


def problems(data: Path, tokenizer: Any) -> tuple[list[Example], list[Example]]:
    """Rows to train on, with two right answers as ``responses``, and test rows, one for each answer."""
    both = zip(_columns(data, PROBLEMS), _columns(data, f"{PROBLEMS}_socratic"), strict=True)
    pairs = [
        {
            "prompt": plain["question"],
            "responses": [re.sub("<<.*?>>", "", each["answer"]) for each in (plain, socratic)],
        }
        for plain, socratic in both
    ]
    rows = _shuffled([row for row in pairs if _fits(tokenizer, row["prompt"], *row["responses"])], "problems")
    tests = [answered(row, number) for row in rows[:TEST_PROBLEMS] for number in (0, 1)]
    return rows[TEST_PROBLEMS:], tests


def answered(row: Example, number: int) -> Example:
    """A problem with one of its answers."""
    return {"prompt": row["prompt"], "completion": row["responses"][number]}


def drawn(rows: list[Example], seed: int) -> list[Example]:
    """The rows in an order that the seed decides; a training takes the first of them."""
    return _shuffled(rows, f"seed {seed}")


def _call(row: Example, gold: list[Example]) -> Example:
    """A request, its tools by their parameters, and the right call with the first of the values that are right."""
    ((tool, arguments),) = gold[0].items()
    given = ", ".join(f"{name}={values[0]!r}" for name, values in arguments.items() if values[0] != "")
    tools = [{"name": each["name"], "parameters": each["parameters"]} for each in row["function"]]
    listed = "\n".join(f"{each['name']}({', '.join(each['parameters']['properties'])})" for each in tools)
    prompt = f"{row['question'][0][0]['content']}\n\nTools:\n{listed}"
    return {"prompt": prompt, "completion": f"{tool}({given})", "tool": tool, "tools": tools}


def _columns(data: Path, name: str) -> Iterator[Example]:
    return (dict(row.columns) for row in read_data(data / f"{name}.jsonl.gz", "two-recipes.md"))


def _fits(tokenizer: Any, prompt: str, *completions: str) -> bool:
    rows = [Row.of("row", {"prompt": prompt, "completion": completion}) for completion in completions]
    return max(len(row["input_ids"]) for row in encode(tokenizer, rows)) <= TOKENS


def _shuffled(rows: list[Example], seed: str) -> list[Example]:
    return random.Random(seed).sample(rows, len(rows))
