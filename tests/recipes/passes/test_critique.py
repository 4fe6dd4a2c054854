"""Critique fine-tuning's rows."""

from __future__ import annotations

import pytest
import torch
from scripted_writer import ScriptedWriter, run_pass
from tiny_chat import tiny_tokenizer, write_chat_model

from weightops.algebra.loading import load
from weightops.recipes.floor.trainer import measure
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.passes.critique import Critique
from weightops.recipes.writing.asks import Written
from weightops.rows.chat import row_tokens
from weightops.rows.encode import encode
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


def test_the_loss_is_that_of_transformers_on_the_critique_alone_and_depends_on_the_answer(tmp_path):
    """Labels of -100 on question and answer, by hand; an empty answer leaves tuning on the critique in its frame."""
    model, tokenizer = load(write_chat_model(tmp_path / "model"), "float32")
    records, _ = run_pass(Critique(), [ROW, {**ROW, "response": "4"}, {**ROW, "response": ""}], tmp_path)
    encoded = encode(tokenizer, [Row.of("row", record) for record in records])
    losses = [measure(model, [row], NextToken().ready(model, tokenizer, encoded), 1)["loss"] for row in encoded]
    for record, loss in zip(records, losses, strict=True):
        turns = [{"role": "user", "content": record["prompt"]}]
        before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        begin, end = tokenizer(before)["input_ids"], tokenizer(f"{ROW['critique']}<|im_end|>")["input_ids"]
        labels = torch.tensor([[-100] * len(begin) + end])
        expected = model(input_ids=torch.tensor([begin + end]), labels=labels).loss.item()
        assert loss == pytest.approx(expected, abs=1e-6)
    assert len(set(losses)) == 3
    assert len({sum(row["trained"]) for row in encoded}) == 1


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
