"""FAIT: which tokens of a correct program are marked, with any tokenizer, and what their weight does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import tiny_tokenizer
from token_rows import ROWS, Table, faults_of, gradient
from transformers import PreTrainedTokenizerFast

from weightops.errors import WeightopsError
from weightops.recipes.data.packing import pack
from weightops.recipes.objectives import fault_aware
from weightops.recipes.objectives.fault_aware import FaultAware, differences
from weightops.recipes.objectives.next_token import NextToken
from weightops.rows.encode import encode
from weightops.rows.row import Row


def words_tokenizer():
    """Splits at white space and marks of punctuation: tokens are words or marks such as ``<=``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {"[unk]": 0, "[end]": 1, "<": 2, "<=": 3, "if": 4, "a": 5, "b": 6, ":": 7, "return": 8, "+": 9}
    raw = Tokenizer(models.WordLevel(known, unk_token="[unk]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[unk]", eos_token="[end]")


TOKENIZERS = {"bytes": tiny_tokenizer(), "words": words_tokenizer()}
CORRECT = "def f(a, b):\n    if a < b:\n        return a\n    return b"
WRONG = CORRECT.replace("<", "<=")


def encoded(correct, incorrect, tokenizer="bytes", chat=True, **parameters):
    row = Row.of("rows.jsonl, line 1", {"prompt": "min? if a < b", "completion": correct, "incorrect": incorrect})
    (made,) = encode(TOKENIZERS[tokenizer], [row], chat=chat, fields=FaultAware(**parameters).fields)
    return made


def marked_text(made, tokenizer="bytes"):
    ids = [token for token, marked in zip(made["input_ids"], made["marked"], strict=True) if marked]
    return TOKENIZERS[tokenizer].decode(ids)


@pytest.mark.parametrize(("tokenizer", "chat"), [("bytes", True), ("bytes", False), ("words", False)])
def test_less_or_equal_for_less_marks_the_token_that_holds_it_or_its_line(tokenizer, chat):
    assert marked_text(encoded(CORRECT, WRONG, tokenizer, chat), tokenizer).strip() == "<"
    assert marked_text(encoded(WRONG, CORRECT, tokenizer, chat), tokenizer).strip() in ("=", "<=")
    line = marked_text(encoded(CORRECT, WRONG, tokenizer, chat, marks="lines"), tokenizer)
    assert line.replace(" ", "") == "ifa<b:"


def test_a_line_that_only_the_wrong_program_has_marks_nothing_and_one_that_only_the_correct_has_is_marked():
    longer = CORRECT.replace("    return b", "    b = a\n    return b")
    for marks in ("tokens", "lines"):
        assert not any(encoded(CORRECT, longer, marks=marks)["marked"])
        assert marked_text(encoded(longer, CORRECT, marks=marks)) == "    b = a"


@given(st.text(max_size=30), st.sampled_from(["tokens", "lines"]))
def test_equal_programs_differ_nowhere_whatever_their_line_ends_and_tabs(program, marks):
    program = program.replace("\r", "")
    assert differences(program, program, marks) == []
    assert differences(program.replace("\n", "\r\n"), program, marks) == []
    assert differences(program, program.replace("\n", "\r"), marks) == []
    assert differences(program, program.expandtabs(8), marks) == [] or set(program) & set("\v\f\x1c\x1d\x1e\x85")


def test_a_difference_in_a_program_of_mixed_line_ends_and_tabs_is_found_where_it_is():
    correct, wrong = "if a:\r\n\tx = 1\r\ty = 2\nreturn x", "if a:\n        x = 1\n        y = 3\nreturn x"
    assert [correct[start:end] for start, end in differences(correct, wrong, "tokens")] == ["2"]
    assert [correct[start:end] for start, end in differences(correct, wrong, "lines")] == ["\ty = 2"]
    assert marked_text(encoded(correct, wrong)) == "2"


@given(st.text("ab\n", max_size=12), st.text("ab\n", max_size=12))
def test_marked_characters_lie_in_marked_lines_and_without_marks_nothing_of_the_correct_program_is_missing(one, other):
    characters = {at for start, end in differences(one, other, "tokens") for at in range(start, end)}
    lines = {at for start, end in differences(one, other, "lines") for at in range(start, end)}
    assert characters <= lines | {at for at, character in enumerate(one) if character == "\n"}
    if not lines:
        remaining = iter(other.split("\n"))
        assert all(
            line in remaining for line in one.split("\n") if line
        )  # in order, among lines that only the other has


def test_programs_too_unlike_to_compare_are_marked_whole_and_soon(monkeypatch):
    one, other = "x" * 9 + "a" * 3000 + "y", "x" * 9 + "b" * 3000 + "y"
    assert differences(one, other, "tokens") == [(9, 3009)]
    monkeypatch.setattr(fault_aware, "LINE_PAIRS", 3)
    assert differences("a\nb\nc\nd", "a\nc\nb\nd", "lines") == [(2, 3), (4, 5)]


def test_an_emphasis_of_1_and_programs_that_do_not_differ_are_plain_fine_tuning_bit_for_bit():
    model = Table()
    marked = [{**row, "marked": [number % 2 == 0 for number in range(len(row["input_ids"]))]} for row in ROWS]
    unmarked = [{**row, "marked": [False] * len(row["input_ids"])} for row in ROWS]
    plain = gradient(model, NextToken(), ROWS)
    for objective, rows in ((FaultAware(emphasis=1.0), marked), (FaultAware(emphasis=9.0), unmarked)):
        assert all(torch.equal(one, other) for one, other in zip(gradient(model, objective, rows), plain, strict=True))
    assert FaultAware().items(FaultAware().batch(marked)) == NextToken().items(NextToken().batch(ROWS))


@settings(max_examples=20)
@given(st.floats(0, 8), st.integers(0, 99))
def test_the_gradient_is_linear_in_the_emphasis_and_marks_touch_only_their_tokens(emphasis, seed):
    model = Table(seed=seed)
    marked = [{**row, "marked": [number % 3 == 0 for number in range(len(row["input_ids"]))]} for row in ROWS]
    only = [
        {**row, "trained": [a and b for a, b in zip(row.get("trained", [True] * 9), row["marked"], strict=False)]}
        for row in marked
    ]
    _, weighted = gradient(model, FaultAware(emphasis=emphasis), marked)
    expected = gradient(model, NextToken(), ROWS)[1] + (emphasis - 1) * gradient(model, NextToken(), only)[1]
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=1e-4)


def test_a_doubtful_weight_falls_to_1_as_a_token_is_learned_and_has_no_gradient_of_its_own():
    objective = FaultAware(emphasis=3.0, weight="doubtful")
    log_probability = torch.tensor([1.0, 0.5, 1e-9]).log()
    marked = torch.tensor([True, True, True])
    torch.testing.assert_close(objective.weights(log_probability, marked), torch.tensor([1.0, 2.0, 3.0]))
    assert objective.weights(log_probability, ~marked).tolist() == [1.0] * 3


def test_packed_cut_or_padded_rows_keep_their_marks():
    rows = [encoded(CORRECT, WRONG), encoded("a + b", "a - b")]
    apart, together = FaultAware(), FaultAware()
    model = Table(vocabulary=400)
    whole = apart.loss(model, apart.batch(rows))
    packed = together.loss(model, together.batch(pack(rows, 500)))
    alone = sum(apart.loss(model, apart.batch([row])) for row in rows)
    torch.testing.assert_close(whole, packed)
    torch.testing.assert_close(whole, alone)
    row = Row.of("r, line 1", {"prompt": "min?", "completion": CORRECT, "incorrect": WRONG})
    (cut,) = encode(TOKENIZERS["bytes"], [row], 40, fields=FaultAware().fields, report=lambda note: None)
    assert len(cut["marked"]) == 40


def test_rows_without_a_wrong_program_are_all_named_and_a_template_that_rewrites_programs_is_refused(tmp_path):
    records = [{"prompt": "p", "completion": "c", "incorrect": "d"}] + [{"prompt": "p", "completion": "c"}] * 14
    records += [{"text": "plain", "incorrect": "x"}, {"prompt": "p", "completion": "c", "incorrect": 3}]
    faults = faults_of(records, FaultAware(), tmp_path)
    assert [fault.partition(";")[0] for fault in faults] == [
        "lines 2-15: incorrect: must be a text, the wrong program",
        "line 16: completion: must be a text, the correct program",
        "line 17: incorrect: must be a text, the wrong program",
    ]
    shouting = tiny_tokenizer()
    shouting.chat_template = shouting.chat_template.replace("message['content'] }}", "message['content'] | upper }}")
    row = Row.of("rows.jsonl, line 1", records[0])
    with pytest.raises(WeightopsError, match="rewrites"):
        encode(shouting, [row], fields=FaultAware().fields)
