"""Critique fine-tuning's rows."""

from __future__ import annotations

from scripted_writer import ScriptedWriter, run_pass
from tiny_chat import tiny_tokenizer

from weightops.recipes.passes.critique import Critique
from weightops.recipes.writing.asks import Written
from weightops.rows.chat import row_tokens
from weightops.rows.row import Row

ROW = {"prompt": "What is 2 + 2?", "response": "5", "critique": "Wrong: it is 4."}


def test_question_and_answer_are_read_back_from_the_prompt_and_the_critique_is_learned(tmp_path):
    (record,), _ = run_pass(Critique(), [ROW], tmp_path)
    _before, question, solution = record["prompt"].replace("Solution:\n", "Question:\n").split("Question:\n")
    assert (question.strip(), solution) == (ROW["prompt"], ROW["response"])
    assert record["completion"] == ROW["critique"]


def test_a_change_of_the_answer_changes_what_is_read_but_not_what_is_learned(tmp_path):
    rows = [ROW, {**ROW, "response": "4"}]
    records, _ = run_pass(Critique(), rows, tmp_path)
    one, other = (row_tokens(tiny_tokenizer(), Row.of("row", record)) for record in records)
    assert one.ids != other.ids
    assert sum(one.trained) == sum(other.trained)


def test_a_teacher_writes_the_critiques_that_are_missing(tmp_path):
    writer = ScriptedWriter(lambda prompt, sample: Written("cut", False) if "again" in prompt else "Conclusion: wrong")
    rows = [ROW, {"prompt": "2?", "response": "3"}, {"prompt": "again?", "response": "3"}]
    records, counts = run_pass(Critique(writer=writer), rows, tmp_path)
    assert [(record["completion"], record["source"]) for record in records] == [
        ("Wrong: it is 4.", "data"),
        ("Conclusion: wrong", "teacher"),
    ]
    assert counts.notes == {"a critique was empty or cut off; its row was left out": 1}


def test_without_a_teacher_every_row_needs_a_critique():
    problems = list(Critique().problems(Row.of("row", {"prompt": "2?", "response": "3"})))
    assert problems == ["critique: must be a text; or name a writer that criticises"]
