import pytest
from tiny_chat import tiny_tokenizer

from weightops.errors import WeightopsError
from weightops.rows.encode import check_columns, encode
from weightops.rows.row import Row

TOKENIZER = tiny_tokenizer()
CHAT = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]


def row(**record):
    return Row.of(f"rows.jsonl, line {len(str(record))}", record)


def learnt(example):
    pairs = zip(example["input_ids"], example["trained"], strict=True)
    return TOKENIZER.decode([token for token, trained in pairs if trained])


def test_each_form_of_a_row_is_learnt_where_it_answers():
    rows = [
        row(messages=CHAT, text="not this"),
        row(prompt="asked", completion="said"),
        row(prompt=CHAT[:1], completion=CHAT[1:]),
        row(text="said"),
    ]
    assert [learnt(example) for example in encode(TOKENIZER, rows)] == ["said<|im_end|>"] * 4
    whole = [TOKENIZER.decode(example["input_ids"]) for example in encode(TOKENIZER, rows, chat=False)]
    assert whole[1] == "askedsaid<|im_end|>"
    assert whole[0] == whole[2] == TOKENIZER.apply_chat_template(CHAT, tokenize=False).rstrip("\n") + "\n"


def test_long_rows_are_cut_and_what_has_no_answer_left_is_left_out_and_both_are_reported():
    rows = [row(prompt="a", completion="b" * 60), row(prompt="a" * 60, completion="b"), row(prompt="a", completion="b")]
    notes = []
    whole = encode(TOKENIZER, rows, report=notes.append)
    assert notes == []
    short = encode(TOKENIZER, rows, 40, report=notes.append)
    assert [len(example["input_ids"]) for example in short] == [40, len(whole[2]["input_ids"])]
    assert short[0]["input_ids"] == whole[0]["input_ids"][:40]
    assert [note.split(" rows")[0] for note in notes] == ["1 of 3", "1 of 3"]
    assert "longer than 40 tokens and were cut" in notes[0]
    assert "were left out" in notes[1]
    with pytest.raises(WeightopsError, match="none of 1 rows has anything to learn"):
        encode(TOKENIZER, rows[1:2], 40, report=notes.append)


def test_every_row_that_cannot_be_used_is_named():
    rows = [Row.of(f"rows.jsonl, line {n}", {"label": 1}) for n in range(1, 21)]
    rows[1] = Row.of("rows.jsonl, line 2", {"messages": CHAT[:1]})
    rows[2] = Row.of("rows.jsonl, line 3", {"messages": 3})
    rows[3] = Row.of("rows.jsonl, line 4", {"completion": "b"})
    with pytest.raises(WeightopsError) as caught:
        encode(TOKENIZER, rows)
    wanted = (
        "needs messages, prompt",
        "no message of the assistant",
        "must be a list of messages",
        "the row also needs prompt",
    )
    for number, (problem, said) in enumerate(zip(caught.value.problems[:4], wanted, strict=True), 1):
        assert problem.startswith(f"rows.jsonl, line {number}: ")
        assert said in problem
    assert len(caught.value.problems) == 11


def test_columns_that_an_objective_reads_are_passed_on_and_must_be_numbers_in_every_row():
    rows = [Row.of(f"rows.jsonl, line {n}", {"text": "said", "weight": n, "note": "x"}) for n in (1, 2)]
    check_columns(rows, ["weight"], "objective weighted")
    assert [example["weight"] for example in encode(TOKENIZER, rows, columns=["weight"])] == [1, 2]
    assert "note" not in encode(TOKENIZER, rows, columns=["weight"])[0]
    for wrong in ("heavy", True, float("nan"), None, [1]):
        bad = [*rows, Row.of("rows.jsonl, line 3", {"text": "said", "weight": wrong})]
        with pytest.raises(WeightopsError, match="rows.jsonl, line 3: weight: must be a number, which objective wei"):
            check_columns(bad, ["weight"], "objective weighted")
    with pytest.raises(WeightopsError, match="objective weighted reads hardness of each row, but no row has it"):
        check_columns(rows, ["hardness"], "objective weighted")
