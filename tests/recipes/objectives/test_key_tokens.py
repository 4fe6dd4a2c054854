"""TL-Training: which tokens tell one tool from the others, and how much they weigh."""

from __future__ import annotations

import pytest
import torch
from tiny_chat import tiny_tokenizer
from token_rows import ROWS, Table, faults_of, gradient

from weightops.errors import WeightopsError
from weightops.recipes.objectives.key_tokens import KeyTokens, key_characters
from weightops.recipes.objectives.next_token import NextToken
from weightops.rows.chat import row_tokens
from weightops.rows.encode import encode
from weightops.rows.row import Row

TOKENIZER = tiny_tokenizer()
TOOLS = ["search_web", "search_maps", "weather", "search_web_pages"]
ANSWER = 'I search. Action: search_web{"q": "safe"}'


def a_row(tool="search_web", answer=ANSWER, tools=TOOLS):
    return Row.of(
        "rows.jsonl, line 1", {"prompt": "find search_web", "completion": answer, "tool": tool, "tools": tools}
    )


def keys_and_weights(row, **parameters):
    """The characters of the key tokens, and all weights of learned tokens."""
    (made,) = encode(TOKENIZER, [row], fields=KeyTokens(**parameters).fields)
    triples = list(zip(made["input_ids"], made["trained"], made["token_weights"], strict=True))
    keys = [TOKENIZER.decode([token]) for token, _, weight in triples if weight != 1]
    return keys, [weight for _, trained, weight in triples[1:] if trained]


def test_a_key_token_holds_the_first_character_or_the_first_after_a_common_beginning():
    assert key_characters("search_web", TOOLS) == [0, 7, 10]
    assert key_characters("weather", TOOLS) == [0]
    keys, weights = keys_and_weights(a_row(), cap=5)
    assert keys == ["s", "w", "{"]
    assert set(weights) == {1.0, 5.0}
    tokens = row_tokens(TOKENIZER, a_row())
    ((begin, _),) = tokens.learned
    marked = tokens.covering(list(KeyTokens(cap=5)._key_spans(tokens, ["search_web"], TOOLS)))
    places = [start - begin for (start, _), mark in zip(tokens.offsets, marked, strict=True) if mark]
    assert places == [ANSWER.index("search_web") + at for at in (0, 7, 10)]


def test_the_weight_is_the_quotient_of_the_rest_and_the_keys_up_to_the_cap_and_1_where_keys_are_many():
    _, weights = keys_and_weights(a_row(), cap=1000)
    count = sum(weight != 1 for weight in weights)
    assert max(weights) == (len(weights) - count) / count
    assert max(keys_and_weights(a_row(), cap=9)[1]) == 9
    assert keys_and_weights(a_row("a", "a", ["a"]))[1] == [1.0, 1.0]  # one key token, and the one that ends the turn


def test_a_name_counts_where_it_is_a_word_after_the_opening_and_calls_are_found_in_order():
    twice = "weathers weather() then search_maps()"
    assert keys_and_weights(a_row(["weather", "search_maps"], twice), cap=2)[0] == ["w", "s", "m"]
    answer = "search_maps is no use. Action:  search_maps()"
    row = a_row("search_maps", answer)
    tokens = row_tokens(TOKENIZER, row)
    (first, *_), (called, *_) = (
        list(KeyTokens(opening=opening)._key_spans(tokens, ["search_maps"], TOOLS)) for opening in ("", "Action:")
    )
    assert called[0] - first[0] == answer.rindex("search_maps")


def test_only_the_assistants_turns_are_searched_and_a_call_that_was_cut_off_is_no_fault():
    turns = [("user", "go"), ("assistant", "yes"), ("user", "use weather now"), ("assistant", "weather(x)")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = Row.of("rows.jsonl, line 1", {"messages": messages, "tool": "weather", "tools": TOOLS})
    keys, weights = keys_and_weights(row, cap=3)
    assert (keys, weights.count(3.0)) == (["w"], 1)
    tokens = row_tokens(TOKENIZER, row)
    (start, _), *_ = KeyTokens()._key_spans(tokens, ["weather"], TOOLS)
    assert start == tokens.text.rindex("weather")
    (cut,) = encode(TOKENIZER, [row], len(tokens.ids) - 12, fields=KeyTokens().fields, report=lambda note: None)
    assert set(cut["token_weights"]) == {1.0}


def test_an_answer_without_a_call_and_a_cap_of_1_are_plain_fine_tuning_bit_for_bit():
    assert set(keys_and_weights(a_row(None))[1]) == set(keys_and_weights(a_row(), cap=1)[1]) == {1.0}
    model, rows = Table(), [{**row, "token_weights": [1.0] * len(row["input_ids"])} for row in ROWS]
    plain = gradient(model, NextToken(), ROWS)
    assert all(torch.equal(a, b) for a, b in zip(gradient(model, KeyTokens(), rows), plain, strict=True))
    assert KeyTokens().items(KeyTokens().batch(rows)) == NextToken().items(NextToken().batch(ROWS))


def test_the_loss_is_the_weighted_mean_of_the_cross_entropies():
    model = Table()
    rows = [{**row, "token_weights": [1.0 + 4 * (at % 3 == 1) for at in range(len(row["input_ids"]))]} for row in ROWS]
    weighted = total = 0.0
    for row in rows:
        trained = row.get("trained", [True] * len(row["input_ids"]))
        for at in range(1, len(trained)):
            if trained[at]:
                log_p = model.table[row["input_ids"][at - 1]].log_softmax(-1)[row["input_ids"][at]]
                weighted, total = weighted - row["token_weights"][at] * log_p.item(), total + row["token_weights"][at]
    batch = KeyTokens().batch(rows)
    assert KeyTokens().loss(model, batch).item() / KeyTokens().items(batch) == pytest.approx(weighted / total, rel=1e-5)


def test_rows_in_another_form_are_all_named_and_a_call_that_is_not_in_the_answer_is_a_fault(tmp_path):
    good = {"prompt": "p", "completion": "weather()", "tool": "weather", "tools": TOOLS}
    definitions = [{"type": "function", "function": {"name": "weather"}}, {"name": "search_maps"}]
    records = [good, {**good, "tools": definitions}, {**good, "tool": None}, {**good, "tool": 3}]
    records += [{**good, "tool": "fly"}, {**good, "tools": None}, {**good, "tool": "fly"}, {**good, "tools": [{}]}]
    faults = faults_of(records, KeyTokens(), tmp_path)
    assert [fault.partition(" (obj")[0] for fault in faults] == [
        "line 4: tool: must be a name, a list of names, or null; found 3",
        "lines 5, 7: tool: 'fly' is not one of the row's tools",
        "line 6: tools: must be a list of names or definitions; found None",
        "line 8: tools: must be a list of names or definitions; found [{}]",
    ]
    with pytest.raises(WeightopsError, match="line 1: tool: the answer does not call 'search_web'"):
        encode(TOKENIZER, [a_row(answer="no call")], fields=KeyTokens().fields)
