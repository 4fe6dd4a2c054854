"""GRAPE picks the most probable answer."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from scripted_writer import ScriptedWriter, run_pass

from weightops.recipes.passes.grape import Grape
from weightops.rows.row import Row


def grape(**settings):
    return Grape(writer=ScriptedWriter(lambda *_: ""), **settings)  # rates by length: the shortest is most probable


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_pick_does_not_depend_on_the_order_of_the_candidates(answers, draw):
    import tempfile
    from pathlib import Path

    shuffled = draw.sample(answers, len(answers))
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"prompt": "?", "responses": answers}, {"prompt": "?", "responses": shuffled}]
        (first, second), _ = run_pass(grape(), rows, Path(folder))
    assert first["score"] == second["score"] == max(-float(len(each)) for each in answers)


def test_of_equal_candidates_the_first_wins_and_keep_keeps_more(tmp_path):
    rows = [{"prompt": "?", "responses": ["ccc", {"text": "bb", "source": "b"}, "aa"]}]
    records, counts = run_pass(grape(keep=2), rows, tmp_path)
    assert [record["completion"] for record in records] == ["bb", "aa"]
    assert counts.sources == {"b": 1}


def test_one_candidate_is_the_data_itself(tmp_path):
    rows = [{"prompt": f"{n}?", "responses": [random.Random(n).choice("abc")]} for n in range(9)]
    records, _ = run_pass(grape(), rows, tmp_path)
    assert [(r["prompt"], r["completion"]) for r in records] == [(r["prompt"], r["responses"][0]) for r in rows]


def test_the_papers_frame_is_a_plain_text(tmp_path):
    rewriting = grape(frame="question")
    run_pass(rewriting, [{"prompt": "Why?", "responses": ["So."]}], tmp_path)
    (ask,) = rewriting.writer.asks
    assert (ask.prompt, ask.chat) == ("Question: Why? \n Answer: ", False)


def test_rows_without_prompt_or_answers_are_named():
    assert len(list(grape().problems(Row.of("row", {"responses": [3]})))) == 2
    assert len(list(grape().problems(Row.of("row", {"prompt": "?", "responses": []})))) == 1
