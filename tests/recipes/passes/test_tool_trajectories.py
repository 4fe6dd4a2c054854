"""Turns whose tool call failed are dropped."""

from __future__ import annotations

from scripted_writer import run_pass

from weightops.recipes.passes.tool_trajectories import ToolTrajectories

TURNS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": 'weather("Berln")'},
    {"role": "tool", "content": "Error: city NOT-FOUND"},
    {"role": "assistant", "content": 'weather("Berlin")'},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny. There was an error before."},
]


def test_each_turn_that_did_not_fail_is_a_row_with_what_came_before(tmp_path):
    records, counts = run_pass(ToolTrajectories(), [{"messages": TURNS, "tools": ["weather"]}], tmp_path)
    assert [(len(record["prompt"]), record["completion"][0]["content"]) for record in records] == [
        (3, 'weather("Berlin")'),
        (5, "It is sunny. There was an error before."),
    ]
    assert all(record["tools"] == ["weather"] for record in records)
    assert counts.notes == {"a turn whose tool call failed was dropped": 1}


def test_without_phrases_every_turn_is_kept(tmp_path):
    records, _ = run_pass(ToolTrajectories(phrases=()), [{"messages": TURNS}], tmp_path)
    assert len(records) == 3


def test_phrases_are_compared_by_letters_and_digits_in_any_case(tmp_path):
    records, _ = run_pass(ToolTrajectories(phrases=("city not found",)), [{"messages": TURNS}], tmp_path)
    assert len(records) == 2
