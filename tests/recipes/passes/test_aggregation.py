"""Aggregation fine-tuning: rows, and answers by proposing and aggregating."""

from __future__ import annotations

import pytest
from scripted_writer import ScriptedWriter, run_pass
from tiny_chat import tiny_tokenizer

from weightops.recipes.passes.aggregation import Aggregation
from weightops.rows.chat import row_tokens
from weightops.rows.row import Row

ROW = {"prompt": "Why?", "completion": "Because.", "proposals": ["So.", "No idea."]}


def test_the_aggregation_alone_is_learned(tmp_path):
    rows = [ROW, {**ROW, "proposals": ROW["proposals"][::-1]}, {**ROW, "proposals": []}]
    records, _ = run_pass(Aggregation(), rows, tmp_path)
    tokens = [row_tokens(tiny_tokenizer(), Row.of("row", record)) for record in records]
    plain = row_tokens(tiny_tokenizer(), Row.of("row", {"prompt": "Why?", "completion": "Because."}))
    assert {sum(each.trained) for each in tokens} == {sum(plain.trained)}
    assert tokens[0].ids != tokens[1].ids
    assert tokens[2] == plain  # without proposals it is plain tuning


@pytest.mark.parametrize(("samples", "aggregations"), [(1, 1), (3, 1), (2, 3)])
def test_every_aggregation_sees_exactly_the_answers_of_the_layer_before(tmp_path, samples, aggregations):
    made = iter(range(1000))
    writer = ScriptedWriter(lambda prompt, sample: f"answer {next(made)}")
    rewriting = Aggregation(gives="answers", samples=samples, aggregations=aggregations, writer=writer)
    (record,), _ = run_pass(rewriting, [{"prompt": "Why?"}], tmp_path)
    calls = [ask.samples for ask in writer.asks]
    assert sum(calls) == samples + samples * (aggregations - 1) + 1
    first = 0
    for ask in writer.asks[1:]:
        listed = "\n".join(f"{n}. answer {first + n - 1}" for n in range(1, samples + 1))
        assert ask.prompt[0]["content"].endswith(f"\n\n{listed}")
        assert ask.prompt[1]["content"] == "Why?"
        first += samples
    assert record["completion"] == f"answer {sum(calls) - 1}"


def test_rows_without_proposals_get_them_from_the_writer(tmp_path):
    writer = ScriptedWriter(lambda prompt, sample: "" if sample == 1 else f"sample {sample}")
    row = {"prompt": "Why?", "completion": "Because."}
    (record,), counts = run_pass(Aggregation(samples=3, writer=writer), [row], tmp_path)
    assert record["source"] == "sampled"
    assert record["messages"][0]["content"].endswith("1. sample 0\n2. sample 2")
    assert counts.notes == {"answers were empty or cut off, and left out": 1}
