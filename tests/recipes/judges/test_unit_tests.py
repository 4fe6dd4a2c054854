"""Programs judged by their unit tests."""

from __future__ import annotations

import pytest
from sandboxes import needs_sandbox
from scripted_writer import ScriptedWriter, run_pass

from weightops.recipes.judges.unit_tests import UnitTests, program_of
from weightops.recipes.passes.s3ft import S3ft
from weightops.rows.row import Row

ROW = {"prompt": "Add.", "completion": "def add(a, b):\n    return a + b", "test_list": ["assert add(2, 3) == 5"]}


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("Sure:\n```python\ndef add(a, b):\n    return b + a\n```\nDone.", "self"),
        ("def add(a, b): return a + b", "self"),
        ("def add(a, b): return a - b", "gold"),
        ("import os; os._exit(0)", "gold"),
        ("def add(a, b): return", "gold"),
    ],
)
def test_the_models_program_is_kept_if_it_passes_the_tests(tmp_path, answer, source):
    writer = ScriptedWriter(lambda prompt, sample: answer)
    records, _ = run_pass(S3ft(UnitTests(), paraphrase=False, writer=writer), [ROW], tmp_path)
    assert [record["source"] for record in records] == [source]


@needs_sandbox
def test_a_program_that_hangs_leaves_the_gold_answer_and_is_counted(tmp_path):
    writer = ScriptedWriter(lambda prompt, sample: "while True: pass")
    judge = UnitTests(seconds=0.5)
    records, counts = run_pass(S3ft(judge, paraphrase=False, writer=writer), [ROW], tmp_path)
    assert records[0]["source"] == "gold"
    assert counts.notes == {"a program was stopped: too slow": 1}


def test_a_row_without_tests_is_named():
    (problem,) = UnitTests().problems(Row.of("row", {"prompt": "?", "completion": "x", "test_list": 3}))
    assert "test_list" in problem


def test_all_fenced_code_is_the_program_else_the_whole_answer():
    assert program_of("```py\na = 1\n```\nthen\n```\nb = 2\n```") == "a = 1\n\nb = 2\n"
    assert program_of("a = 1") == "a = 1"
