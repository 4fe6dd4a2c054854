"""Tool calls held against the gold call: the numbers of TL-Training's code, and what counts as a call."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_writer import ScriptedWriter, run_pass

from weightops.recipes.data.tool_calls import Call, call_in, parameters_by_tool, reward
from weightops.recipes.judges.tool_call import ToolCall
from weightops.recipes.passes.s3ft import S3ft
from weightops.rows.row import Row

TOOLS = [
    {"type": "function", "function": {"name": "search", "parameters": {"properties": {"q": {}, "n": {}}}}},
    {"name": "weather", "parameters": {"properties": {"city": {}}}},
]

#: What the paper's own function gives for these calls, where the gold call is ``search(q='a')``.
REWARDS = {
    "search(q='a')": 1,
    "search(q='b')": -0.25,
    "search(q='a', n='1')": -0.5,
    "search()": -0.5,
    "search(n='1')": -1.0,
    "search(q='a', z='1')": -0.8,
    "search(z='1')": -1.3,
    "search(n='1', z='2')": -1.8,
    "weather(city='a')": -1.5,
    "foo(q='a')": -2,
    "no call": -2,
}


@pytest.mark.parametrize("answer", REWARDS)
def test_the_reward_is_that_of_the_papers_code(answer):
    assert reward(call_in(answer), Call("search", {"q": "a"}), parameters_by_tool(TOOLS)) == REWARDS[answer]


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("Thought: search (the web).\nAction: search(q='a (b)', n=[1, 2]) or weather(city='x')",
         Call("search", {"q": "a (b)", "n": [1, 2]})),
        ('<tool_call>\n{"name": "search", "arguments": {"q": "a", "n": {"m": 1}}}\n</tool_call> f(x=1)',
         Call("search", {"q": "a", "n": {"m": 1}})),
        ("geo.area(side=3, exact=True)", Call("geo.area", {"side": 3, "exact": True})),
        (r"search(q='\d')", Call("search", {"q": r"\d"})),
        ("search('a')", None),
        ("search(q=paris)", None),
        ("search(**{'q': 1})", None),
        ("search(q='a'", None),
        ('{"name": "search"}', None),
    ],
)  # fmt: skip
def test_a_call_is_the_first_one_with_literal_arguments_by_name(text, call):
    assert call_in(text) == call


@given(st.text("f(){}\"'=:,a1.\\ \n", max_size=60))
def test_no_text_breaks_the_search_for_a_call(text):
    assert call_in(text) is None or isinstance(call_in(text), Call)


@pytest.mark.parametrize("piece", ["f(", "f('", "{", '{"a":', "[", "f(a=", "f(a=[", "-"])
def test_a_long_hostile_text_is_searched_soon(piece):
    begun = time.monotonic()
    assert call_in(piece * 10**5) is None
    call_in(f"f(a={piece * 2000})"[-8000:])
    assert time.monotonic() - begun < 5


def test_a_right_call_of_the_models_own_is_learned_and_a_threshold_allows_wrong_values(tmp_path):
    row = {"prompt": "Search a.", "completion": "Action: search(q='a')", "tools": TOOLS}
    for least, answer, source in [
        (1, 'I call {"name": "search", "arguments": {"q": "a"}}', "self"),
        (1, "search(q='b')", "gold"),
        (-0.25, "search(q='b')", "self"),
        (-0.25, "search(z='b')", "gold"),
    ]:
        rewriting = S3ft(ToolCall(least), paraphrase=False, writer=ScriptedWriter(lambda *_, answer=answer: answer))
        (tmp_path / "answers.jsonl").unlink(missing_ok=True)
        records, _ = run_pass(rewriting, [row], tmp_path)
        assert records[0]["source"] == source


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tools": ["search"]}, "tools: must be a list of definitions"),
        ({"tools": None}, "tools: must be a list of definitions"),
        ({"completion": "I search."}, "the gold answer does not call"),
        ({"completion": "search(z=1)"}, "the gold answer does not call"),
        ({"completion": "find(q=1)"}, "the gold answer does not call"),
        ({"completion": None}, "needs prompt and completion"),
    ],
)
def test_rows_without_definitions_or_a_gold_call_are_named(change, problem):
    row = Row.of("row", {"prompt": "?", "completion": "search(q='a')", "tools": TOOLS, **change})
    (found,) = ToolCall().problems(row)
    assert problem in found
