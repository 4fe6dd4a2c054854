"""The page of the two recipes shows what was measured; the rows of both skills are what it says."""

import gzip
import json

import pytest
from evidence_pages import written
from tiny_chat import tiny_tokenizer

from examples.experiments.two_recipes import skill_page, skill_rows
from examples.experiments.two_recipes.skill_runs import judged
from weightops.errors import WeightopsError


def line(name, seed, calls, problems, right=10):
    return {"name": name, "seed": seed, "calls": calls, "problems": problems, "right tools": right,
            "right calls": right / 2, "reward": -1.0}  # fmt: skip


LINES = [
    line("base", 0, 2.0, 3.0, 0),
    *(
        each
        for seed in (0, 1)
        for each in (
            line("key tokens", seed, 1.0, 3.0),
            line("grape", seed, 2.0, 2.0),
            line("routines task_arithmetic", seed, 1.5, 2.25 + seed / 10),
            line("routines ties", seed, 1.0, 2.0),
            line("plain calls", seed, 1.25, 3.0),
            line("plain problems", seed, 2.0, 2.0),
            line("plain task_arithmetic", seed, 1.25, 3.0),
            line("plain ties", seed, 1.25, 2.0),
        )
    ),
]


def test_what_a_merge_kept_is_its_share_of_what_each_skill_had_gained():
    """By hand: half of the gain in calls, (3 - 2.25) and (3 - 2.35) of 1 in problems."""
    kept = skill_page.kept(LINES, "routines", "task_arithmetic", "problems")
    assert dict(kept.values) == pytest.approx({0: 0.75, 1: 0.65})
    rows = skill_page.tables(LINES)["kept"].splitlines()
    assert rows[2] == "| base | 2.000 |  | 3.000 |  | 0.0 | 0.0 |"
    assert rows[5].startswith("| both, task arithmetic | 1.500 ± 0.000 | 50 ± 0 % | 2.300 ± 0.635 | 70 ± 64 % |")
    against = skill_page.tables(LINES)["against plain"].splitlines()
    assert against[2].startswith("| calls, key tokens | **-0.250 ± 0.000** | +0.000 ± 0.000 |")


def test_tables_take_the_place_of_the_earlier_ones(tmp_path):
    assert "| base |" in written(skill_page.PAGE, LINES, tmp_path)


def write(file, records):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))


def test_rows_of_calls_have_the_right_one_and_no_optional_values_and_test_rows_are_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(skill_rows, "TEST_CALLS", 1)
    monkeypatch.setattr(skill_rows, "TOKENS", 400)
    tools = [{"name": name, "parameters": {"properties": {"x": {}, "y": {}}}} for name in ("f.one", "f.two")]
    requests = [
        {"id": str(n), "question": [[{"role": "user", "content": f"{n}?"}]], "function": tools} for n in range(3)
    ]
    gold = [{"id": str(n), "ground_truth": [{"f.two": {"x": [n, "n"], "y": ["", True]}}]} for n in range(3)]
    write(tmp_path / "tool_bfcl_v4" / "multiple.jsonl.gz", requests)
    write(tmp_path / "tool_bfcl_v4" / "multiple_answers.jsonl.gz", gold)
    train, test = skill_rows.calls(tmp_path, tiny_tokenizer())
    row = next(row for row in (*train, *test) if row["prompt"].startswith("1?"))
    assert row["prompt"] == "1?\n\nTools:\nf.one(x, y)\nf.two(x, y)"
    assert (row["completion"], row["tool"]) == ("f.two(x=1)", "f.two")
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in test)
    answers = ["f.two(x=1)", "I say f.two(x=3)", "f.one(x=1)", "?"]
    assert judged([row] * 4, answers) == {"right tools": 2, "right calls": 1, "reward": (1 - 0.25 - 1.5 - 2) / 4}
    with pytest.raises(WeightopsError, match=r"two-recipes.md says where the data is from"):
        skill_rows.problems(tmp_path, tiny_tokenizer())
