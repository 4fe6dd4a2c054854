"""Autonomous learning: what a model asks itself, and what it does not know."""

from __future__ import annotations

import math

import pytest
from scripted_writer import ScriptedWriter, run_pass
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.recipes.judges.exact_match import ExactMatch
from weightops.recipes.passes.autonomous_learning import AutonomousLearning

DOCUMENT = "The lighthouse of Orm was built in 1811 by Ada Quist."


def model(closed):
    """Asks two questions about a document, answers them with it, and without it as ``closed`` says."""

    def reply(prompt, sample):
        if prompt.startswith("Read the text"):
            return "Questions:\n1. When was it built?\n2) Who built it?\n2) Who built it?\nThat is all."
        if prompt.startswith(DOCUMENT):
            return "1811" if "When" in prompt else "Ada Quist"
        return closed[prompt]

    return ScriptedWriter(reply)


KNOWS = {"When was it built?": "1811", "Who built it?": "Ada Quist"}


def test_each_question_gives_a_row_with_the_document_and_one_without(tmp_path):
    rewriting = AutonomousLearning(writer=model(KNOWS))
    records, counts = run_pass(rewriting, [{"text": DOCUMENT}], tmp_path)
    assert counts.sources == {"open book": 2, "closed book": 2}
    closed = [record for record in records if record["source"] == "closed book"]
    assert [(record["prompt"], record["completion"]) for record in closed] == list(KNOWS.items())
    assert all(DOCUMENT not in record["prompt"] for record in closed)
    assert all(DOCUMENT in record["prompt"] for record in records if record["source"] == "open book")


def test_a_model_that_knows_everything_gives_no_preferences(tmp_path):
    rewriting = AutonomousLearning(gives="preferences", judge=ExactMatch(), writer=model(KNOWS))
    records, counts = run_pass(rewriting, [{"text": DOCUMENT}], tmp_path)
    assert records == []
    assert counts.notes == {"a question was answered right without the document": 2}


def test_what_it_does_not_know_is_a_preference_without_the_document(tmp_path):
    writer = model({**KNOWS, "Who built it?": "Nobody"})
    rewriting = AutonomousLearning(gives="preferences", judge=ExactMatch(), writer=writer)
    (record,), _ = run_pass(rewriting, [{"text": DOCUMENT}], tmp_path)
    assert (record["prompt"], record["chosen"], record["rejected"]) == ("Who built it?", "Ada Quist", "Nobody")
    closed = [ask.prompt for ask in writer.asks if ask.prompt in KNOWS]
    assert closed == list(KNOWS)  # asked without the document


@pytest.mark.slow
def test_its_preferences_are_rows_of_trls_dpo_whose_loss_begins_at_ln_2(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rewriting = AutonomousLearning(gives="preferences", judge=ExactMatch(), writer=model(dict.fromkeys(KNOWS, "No.")))
    records, _ = run_pass(rewriting, [{"text": DOCUMENT}], tmp_path)
    policy, tokenizer = load(write_chat_model(tmp_path / "model"), "float32")
    config = trl.DPOConfig(
        str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none",
        logging_steps=1, save_strategy="no", gradient_checkpointing=False, learning_rate=1e-3,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(
        [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in records]
    )
    trainer = trl.DPOTrainer(policy, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_long_documents_are_left_out_and_counted(tmp_path):
    rewriting = AutonomousLearning(characters=10, writer=model(KNOWS))
    records, counts = run_pass(rewriting, [{"text": DOCUMENT}], tmp_path)
    assert records == []
    assert counts.notes == {"a document longer than 10 characters was left out": 1}
