"""What a row may hold, and that everything reads it by the same rules."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.rows.labelled import LabelledText, check_both_labels, labelled_texts, texts
from weightops.rows.row import FIELDS, Row, lacks_words

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def row(**record):
    return Row.of("here, line 7", record)


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ({"text": 3}, "text", "must be a text; found 3"),
        ({"messages": "hi"}, "messages", "must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages", "message 1 must have content"),
        ({"messages": [*CHAT, {"content": "x"}]}, "messages", "message 3 must have a role"),
        ({"messages": [{"from": "human", "value": "x"}]}, "messages", "rename them to role"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages", "has a part that is neither"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages", "has a part that is neither"),
        ({"messages": ["hi"]}, "messages", "message 1 must have role and content"),
        ({"prompt": 1, "completion": "a"}, "prompt", "must be a list of messages"),
        ({"completion": "a"}, "completion", "the row also needs prompt"),
        ({"chosen": "a"}, "chosen", "the row also needs rejected"),
        ({"rejected": "a"}, "rejected", "the row also needs chosen"),
        ({"text": "ab", "first_unsafe_char": 2}, "first_unsafe_char", "one of the text's 2 characters"),
        ({"messages": CHAT, "first_unsafe_char": 1}, "first_unsafe_char", "one of the text's 1 characters"),
        ({"text": "ab", "first_unsafe_char": -1}, "first_unsafe_char", "index of a character"),
        ({"text": "ab", "first_unsafe_char": True}, "first_unsafe_char", "index of a character"),
        ({"text": "ab", "first_unsafe_char": 1.0}, "first_unsafe_char", "index of a character"),
        ({"prefix_labels": "safe"}, "prefix_labels", "must be a list"),
        ({"label": 1.5}, "label", "must be a word"),
        ({"images": "a.png"}, "images", "must be a list"),
        (
            {"images": ["a", "b"], "messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "images",
            "the row has 2, but its messages have 1",
        ),
    ],
)
def test_a_field_of_the_wrong_kind_is_a_fault_of_that_field_alone(record, field, message):
    read = row(**record)
    assert read.wrong.keys() >= {field}
    assert read.wrong[field].startswith(f"{field}: ")
    assert message in read.wrong[field]
    assert not getattr(read, field)
    with pytest.raises(WeightopsError, match=field):
        read.checked(field)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), json_values))
def test_any_record_is_a_row_whose_fields_are_sound_or_wrong(record):
    made = Row.of("here", record)
    assert (
        made.columns == {name: value for name, value in record.items() if name == "other"}
        or record["other"] != record["other"]
    )
    for task in (labelled_texts, texts):
        with suppress(WeightopsError):
            assert len(task([made])) == 1


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "add", "input": "1 2", "output": "3"}, "add\n\n1 2"),
        ({"instruction": "add", "input": "", "output": "3", "text": "Below is an instruction"}, "add"),
        ({"instruction": "add", "input": None, "output": "3", "id": 7}, "add"),
        ({"instruction": "add", "output": "3", "system": "", "history": []}, "add"),
    ],
)
def test_a_row_in_alpacas_form_is_a_prompt_and_a_completion(record, prompt):
    row = Row.of("", record)
    assert (row.prompt, row.completion, row.wrong) == (prompt, "3", {})
    assert row.columns["instruction"] == "add"  # a field to disperse by, say


def test_alpacas_fields_are_read_only_where_the_row_has_none_of_ours():
    for ours in ({"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "a"}]}):
        row = Row.of("", {**ours, "instruction": "add", "output": 3})
        assert (row.completion, row.wrong) == (ours.get("completion"), {})
    for wrong, problem in (
        ({"output": 3}, "output: must be a text; found 3"),
        ({"input": ["a"]}, r"input: must be a text; found \['a'\]"),
        ({"history": [["a", "b"]]}, "history: is not read beside instruction and output; write the row as messages"),
    ):
        row = Row.of("", {"instruction": "add", "output": "3", **wrong})
        with pytest.raises(WeightopsError, match=problem):
            row.checked("completion")


def test_a_row_of_other_fields_is_told_which_it_has():
    message = str(lacks_words(Row.of("", {"question": "a", "answer": "b"})))
    assert message.endswith("or text; it has question, answer: rename the fields that hold them")
    assert len(str(lacks_words(Row.of("", {f"{n}" * 500: n for n in range(500)})))) < 1000
    assert str(lacks_words(Row.of("", {}))) == "needs messages, prompt and completion, or text"


def test_a_fault_counts_only_where_the_field_is_read():
    assert texts([row(text="a", label=[1], first_unsafe_char=9)]) == ["a"]
    with pytest.raises(WeightopsError) as caught:
        labelled_texts([row(text="a", label=[1], first_unsafe_char=9)])
    assert len(caught.value.problems) == 2


def test_of_a_conversation_the_last_message_is_judged_and_a_text_comes_before_it():
    assert texts([row(messages=CHAT), row(messages=CHAT, text="t")]) == ["a", "t"]
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert texts([row(messages=[{"role": "user", "content": parts}])]) == ["ab"]
    with pytest.raises(WeightopsError, match="here, line 7: needs text"):
        texts([row(messages=[{"role": "user", "content": [{"type": "image"}]}])])


def test_labels_are_words_numbers_truths_or_the_users_own():
    known = ["safe", "unsafe", 0, 1, False, True]
    assert [each.unsafe for each in labelled_texts([row(text="a", label=label) for label in known])] == [
        False,
        True,
    ] * 3
    rows = [row(text="a", label="harmful"), row(text="a", label="safe")]
    assert labelled_texts(rows, ("benign", "harmful")) == [LabelledText("a", True), LabelledText("a", False)]
    assert labelled_texts([row(text="a", label="safe")], ("unsafe", "safe"))[0].unsafe
    parts = row(text="ab", label=1, prefix_labels=["safe", 1])
    assert labelled_texts([parts])[0].labels == (False, True)
    for wrong in ("harmful", None, "0", ["safe"], 2):
        with pytest.raises(WeightopsError, match=r"here, line 7: label: must be"):
            labelled_texts([row(text="a", label=wrong)])
    with pytest.raises(WeightopsError, match="here, line 7: prefix_labels: must be a list of labels"):
        labelled_texts([row(text="a", label=1, prefix_labels=["bad"])])


def test_faults_of_many_rows_are_ten_and_a_count():
    with pytest.raises(WeightopsError) as caught:
        texts([Row.of(f"row {number}", {"text": number}) for number in range(50)])
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1].startswith("40 more rows")
    with pytest.raises(WeightopsError, match=r"^rows 0-49: needs text"):
        texts([Row.of(f"row {number}", {}) for number in range(50)])


def test_texts_of_one_label_are_nothing_to_train_on():
    check_both_labels([LabelledText("a", True), LabelledText("b", False)])
    with pytest.raises(WeightopsError, match="all 2 rows to train on are labelled unsafe; add rows that are safe"):
        check_both_labels([LabelledText("a", True)] * 2)
