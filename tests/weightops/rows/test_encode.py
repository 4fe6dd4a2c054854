import pytest
from tiny_chat import tiny_tokenizer

from weightops.errors import WeightopsError
from weightops.rows.chat import row_tokens
from weightops.rows.encode import encode
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
    lines = ("lines 1, 5-20", "line 2", "line 3", "line 4")
    for problem, place, message in zip(caught.value.problems, lines, wanted, strict=True):
        assert problem.startswith(f"rows.jsonl, {place}: ")
        assert message in problem


def test_further_fields_are_made_of_a_row_and_its_cut_tokens_and_of_other_rows_alike():
    rows = [row(prompt="asked", completion="one two"), row(prompt="asked " * 9, completion="b" * 60)]

    def fields(row, tokens, tokens_of):
        if row is rows[1]:
            raise WeightopsError("no good")
        return {"length": len(tokens.ids), "same": tokens_of(row) == tokens}

    (made,) = encode(TOKENIZER, rows[:1], 40, fields=fields, report=lambda note: None)
    assert (made["length"], made["same"]) == (len(made["input_ids"]), True)
    with pytest.raises(WeightopsError, match=f"{rows[1].place}: no good"):
        encode(TOKENIZER, rows, fields=fields)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("answer", ["one two", " spaced\r\n\tout ", "日本 🙂🙂", "safe unsafe"])
def test_tokens_of_characters_are_those_whose_text_holds_them(chat, answer):
    tokens = row_tokens(TOKENIZER, row(prompt="one two", completion=answer), chat)
    ((begin, end),) = tokens.learned
    assert tokens.text[begin:end].removesuffix("<|im_end|>") == answer
    for place in range(len(answer)):
        marked = tokens.covering([(begin + place, begin + place + 1)])
        ids = [token for token, mark in zip(tokens.ids, marked, strict=True) if mark]
        assert answer[place] in TOKENIZER.decode(ids)
    assert tokens.covering([(0, begin)]) == [False] * len(tokens.ids)
    assert tokens.first(3).ids == tokens.ids[:3]
