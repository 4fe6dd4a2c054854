"""The vocabulary of an output: laws over small vocabularies, mergekit's build_tokenizer as oracle, cases by hand."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.common import ModelReference
from mergekit.tokenizer.build import build_tokenizer
from tiny_vocabularies import bpe, ids, model, out_ids, plan, special, words

from weightops.errors import WeightopsError

UNION, BASE = "tokenizer_source: union", "tokenizer_source: base"


def problems(*args, **kwargs) -> tuple[str, ...]:
    with pytest.raises(WeightopsError) as caught:
        plan(*args, **kwargs)
    return caught.value.problems


@pytest.fixture
def three(tmp_path):
    """Three word models; b has d, c has e and a special token."""
    return {
        "a": model(tmp_path / "a", special(words("<unk>", "x", "y"), "<s>")),
        "b": model(tmp_path / "b", special(words("<unk>", "y", "d", "x"), "<s>")),
        "c": model(tmp_path / "c", special(words("<unk>", "e", "x"), "<s>", "<end>")),
    }


# --- nothing to align ------------------------------------------------------------------------------------------------


def test_models_with_one_vocabulary_need_no_plan(tmp_path):
    tokenizer = special(words("<unk>", "x"), "<s>")
    assert plan({name: model(tmp_path / name, tokenizer, 8) for name in "ab"}) is None


def test_models_without_tokenizers_need_no_plan_while_their_rows_agree(tmp_path):
    assert plan({name: model(tmp_path / name, None, 8) for name in "ab"}) is None


def test_the_same_tokens_in_files_written_differently_need_no_plan(tmp_path):
    weights = {name: model(tmp_path / name, words("<unk>", "x", "y")) for name in "ab"}
    file = tmp_path / "b" / "tokenizer.json"
    file.write_text(file.read_text() + "\n\n")
    assert plan(weights) is None


@pytest.mark.parametrize("text", [UNION, BASE, "chat_template: chatml"])
def test_where_a_plan_is_asked_for_one_vocabulary_stays_unchanged(tmp_path, text):
    weights = {name: model(tmp_path / name, special(words("<unk>", "x"), "<s>"), 8) for name in "ab"}
    vocabulary = plan(weights, text)
    assert vocabulary.unchanged
    assert vocabulary.size == 8
    assert all(rows.tolist() == list(range(8)) for rows in vocabulary.rows_in.values())


# --- laws ------------------------------------------------------------------------------------------------------------

WORDS = "pqrstuvw"


@st.composite
def vocabularies(draw):
    """Two or three models with some of eight words, in any order, some special tokens and some padding."""
    found = []
    for _ in range(draw(st.integers(2, 3))):
        plain = draw(st.lists(st.sampled_from(WORDS), unique=True, min_size=1))
        marks = draw(st.lists(st.sampled_from(["<s>", "<e>", "<f>"]), unique=True))
        found.append((special(words("<unk>", *plain), *marks), draw(st.integers(0, 3))))
    return found


def planned(found, text: str, base: str | None = None):
    """Plan in a folder that lives as long as the plan is made."""
    folder = Path(tempfile.mkdtemp())
    try:
        weights = {
            name: model(folder / name, tokenizer, tokenizer.get_vocab_size() + pad)
            for name, (tokenizer, pad) in zip("abc", found, strict=False)
        }
        return plan(weights, text, base)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=25, deadline=None)
@given(vocabularies(), st.sampled_from([UNION, BASE, "tokenizer_source: b"]))
def test_own_rows_are_just_the_models_tokens(found, text):
    """By token where there is one; padding belongs to the padding of the same number."""
    vocabulary = planned(found, text)
    tokens = {number: token for token, number in out_ids(vocabulary).items()}
    for name, (tokenizer, pad) in zip("abc", found, strict=False):
        theirs, rows = ids(tokenizer), tokenizer.get_vocab_size() + pad
        for row in range(vocabulary.size):
            bare = row if len(theirs) <= row < rows else -1
            assert vocabulary.rows_in[name][row] == (theirs.get(tokens[row], -1) if row in tokens else bare)


@settings(max_examples=25, deadline=None)
@given(vocabularies())
def test_a_union_has_every_token_of_every_model_and_the_first_ones_numbers(found):
    got = out_ids(planned(found, UNION))
    assert set(got) == {token for tokenizer, _ in found for token in ids(tokenizer)}
    assert ids(found[0][0]).items() <= got.items()
    assert sorted(got.values()) == list(range(len(got)))


@settings(max_examples=25, deadline=None)
@given(vocabularies(), st.integers(1, 16), st.sampled_from([UNION, BASE]))
def test_rows_are_never_fewer_than_the_references_and_a_multiple_of_what_is_asked(found, multiple, text):
    source = text.partition(": ")[2]
    vocabulary = planned(found, f"tokenizer: {{source: {source}, pad_to_multiple_of: {multiple}}}")
    least = max(found[0][0].get_vocab_size() + found[0][1], len(out_ids(vocabulary)))
    assert least <= vocabulary.size < least + multiple
    assert vocabulary.size % multiple == 0
    assert vocabulary.config["vocab_size"] == vocabulary.size


@settings(max_examples=25, deadline=None)
@given(vocabularies())
def test_without_a_setting_the_first_models_tokenizer_and_rows_stay(found):
    vocabulary = planned(found, "")
    if vocabulary is not None:
        assert out_ids(vocabulary) == ids(found[0][0])
        assert vocabulary.size == found[0][0].get_vocab_size() + found[0][1]


# --- the oracle ------------------------------------------------------------------------------------------------------


def theirs(weights, source: str, add: tuple[str, ...] = ()) -> dict[str, int]:
    references = [ModelReference.parse(str(one.folder)) for one in weights.values()]
    wanted_source = source if source in ("union", "base") else ModelReference.parse(str(weights[source].folder))
    return build_tokenizer(references[0], references, wanted_source, False, list(add)).tokenizer.get_vocab()


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_numbers_are_those_of_mergekit(three, source):
    """Each model brings at most one new word: mergekit numbers the words of one model in random order."""
    assert out_ids(plan(three, f"tokenizer_source: {source}")) == theirs(three, source)


def test_tokens_that_only_the_config_names_come_last_as_in_mergekit(three):
    text = "tokenizer: {source: union, tokens: {<new>: {source: {kind: zero}}, x: {source: a}}}"
    got = out_ids(plan(three, text))
    assert got == theirs(three, "union", ("<new>", "x"))
    assert got["<new>"] == len(got) - 1


def test_a_union_of_bpe_vocabularies_is_that_of_mergekit(tmp_path):
    weights = {
        "a": model(tmp_path / "a", special(bpe("abch", "a b"), "<s>")),
        "b": model(tmp_path / "b", special(bpe("abch", "a b", "ab c"), "<s>", "<t>")),
    }
    assert out_ids(plan(weights, UNION)) == theirs(weights, "union")


@settings(max_examples=8, deadline=None)
@given(vocabularies())
def test_a_union_is_that_of_mergekit_up_to_the_order_of_one_models_new_words(found):
    folder = Path(tempfile.mkdtemp())
    try:
        weights = {n: model(folder / n, tokenizer) for n, (tokenizer, _) in zip("abc", found, strict=False)}
        ours, oracle = out_ids(plan(weights, UNION)), theirs(weights, "union")
    finally:
        shutil.rmtree(folder)
    added = {token for tokenizer, _ in found for token in ids(tokenizer) if token.startswith("<")}
    assert set(ours) == set(oracle)
    assert {t: ours[t] for t in added} == {t: oracle[t] for t in added}
    origin = {}
    for place, (tokenizer, _) in enumerate(found):
        for token in ids(tokenizer):
            origin.setdefault(token, place)
    assert [origin[t] for t in sorted(ours, key=ours.get)] == [origin[t] for t in sorted(oracle, key=oracle.get)]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_new_words_come_in_the_order_of_their_number_in_the_model(tmp_path):
    """a: <unk> 0, x 1, <s> 2. b brings m and k, numbered 3 and 1 there; c brings <t>."""
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<s>")),
        "b": model(tmp_path / "b", words("<unk>", "m", "x", "k")),
        "c": model(tmp_path / "c", special(words("<unk>", "z"), "<t>")),
    }
    got = plan(weights, UNION)
    assert out_ids(got) == {"<unk>": 0, "x": 1, "<s>": 2, "m": 3, "k": 4, "z": 5, "<t>": 6}
    assert got.rows_in["b"].tolist() == [0, 2, -1, 1, 3, -1, -1]
    assert got.fallback.pairs(3) == [("b", 1)]


def test_the_base_stands_in_for_a_model_that_lacks_a_token_and_the_mean_where_no_base_is_named(three):
    union, based = plan(three, UNION), plan(three, UNION, base="a")
    y, x = out_ids(union)["y"], out_ids(union)["x"]
    assert union.fallback.pairs(y) == [("a", 2), ("b", 1)]
    assert based.fallback.pairs(y) == [("a", 2)]
    assert union.fallback.pairs(x) == []  # everybody has it


def test_a_slices_own_models_decide_what_stands_in(three):
    vocabulary = plan(three, UNION, base="a")
    part = vocabulary.alignment.among(["b", "c"], None)
    assert part.fallback.pairs(out_ids(vocabulary)["y"]) == [("b", 1)]


def test_a_forced_token_is_the_same_in_every_model(three):
    text = """
tokenizer:
  source: base
  tokens:
    x: {source: b, force: true}
    y: {source: {kind: model_token, model: c, token: <end>}}
    <s>: {source: {kind: zero}, force: true}
"""
    got = plan(three, text)
    x, y, s = (out_ids(got)[token] for token in ("x", "y", "<s>"))
    assert [name for name in "abc" if got.alignment.lacking(name)[x]] == ["a", "b", "c"]
    assert got.fallback.pairs(x) == [("b", 3)]
    assert [name for name in "abc" if got.alignment.lacking(name)[y]] == ["c"]  # not forced: a and b keep their own
    assert got.fallback.pairs(y) == [("c", 4)]
    assert all(got.alignment.lacking(name)[s] for name in "abc")
    assert got.fallback.pairs(s) == []
    assert not got.unchanged


def test_an_entry_that_nobody_needs_is_not_looked_up(three):
    """As in mergekit: every model has x, and nothing is forced."""
    text = "tokenizer: {source: base, tokens: {x: {source: {kind: model_token, model: a, token_id: 99}}}}"
    got = plan(three, text)
    assert not any(got.alignment.lacking(name)[out_ids(got)["x"]] for name in "abc")


def test_force_alone_gives_every_model_the_row_of_the_rule(three):
    got = plan(three, "tokenizer: {source: base, tokens: {x: {force: true}}}", base="a")
    assert got.fallback.pairs(out_ids(got)["x"]) == [("a", 1)]


def test_padding_stays_and_new_tokens_take_its_place(tmp_path):
    """a has two tokens in eight rows: the two of b are numbers 2 and 3, not 8 and 9, and the rows stay eight."""
    weights = {
        "a": model(tmp_path / "a", words("<unk>", "x"), 8),
        "b": model(tmp_path / "b", words("<unk>", "k", "l"), 6),
    }
    got = plan(weights, UNION)
    assert got.size == 8
    assert out_ids(got) == {"<unk>": 0, "x": 1, "k": 2, "l": 3}
    assert got.rows_in["a"].tolist() == [0, 1, -1, -1, 4, 5, 6, 7]
    assert got.rows_in["b"].tolist() == [0, -1, 1, 2, 4, 5, -1, -1]
    assert got.fallback.pairs(6) == [("a", 6)]
    assert not got.fallback.filled.any()


def test_rows_beyond_every_models_padding_are_filled(tmp_path):
    weights = {name: model(tmp_path / name, words("<unk>", "x"), 3) for name in "ab"}
    got = plan(weights, "tokenizer: {source: base, pad_to_multiple_of: 5}")
    assert got.fallback.filled.tolist() == [False, False, False, True, True]


def test_without_a_setting_shorter_padding_is_brought_to_the_references(tmp_path):
    tokenizer = words("<unk>", "x")
    weights = {"a": model(tmp_path / "a", tokenizer, 4), "b": model(tmp_path / "b", tokenizer, 2)}
    got = plan(weights)
    assert (got.size, got.rows_in["b"].tolist()) == (4, [0, 1, -1, -1])
    assert "aligned by token to that of a" in got.notes[0]


def test_without_a_setting_lost_tokens_are_said(three):
    (note,) = (note for note in plan(three).notes if note.startswith("2 tokens of c"))
    assert "first: 'e'" in note
    assert "union" in note


def test_a_token_without_a_row_in_its_model_is_no_token_of_it(tmp_path):
    """b's tokenizer knows <pad>, its embedding ends before: nothing to read there. a has a row for its own <pad>."""
    weights = {
        "a": model(tmp_path / "a", special(words("<unk>", "x"), "<pad>")),
        "b": model(tmp_path / "b", special(words("<unk>", "x"), "<pad>"), 2),
    }
    got = plan(weights, UNION)
    assert got.rows_in["b"].tolist() == [0, 1, -1]
    assert out_ids(got) == theirs(weights, "union")
    turned = plan({"b": weights["b"], "a": weights["a"]}, BASE)
    assert (turned.size, turned.rows_in["b"].tolist(), turned.rows_in["a"].tolist()) == (3, [0, 1, -1], [0, 1, 2])


def test_a_token_without_a_row_does_not_come_into_a_union(tmp_path):
    weights = {
        "a": model(tmp_path / "a", words("<unk>", "x")),
        "b": model(tmp_path / "b", special(words("<unk>", "k"), "<pad>"), 2),
    }
    got = out_ids(plan(weights, UNION))
    assert got == {"<unk>": 0, "x": 1, "k": 2}
    assert got == theirs(weights, "union")


def test_a_token_without_a_row_anywhere_stays_without_one(tmp_path):
    weights = {name: model(tmp_path / name, special(words("<unk>", "x"), "<pad>"), 2) for name in "ab"}
    got = plan(weights, BASE)
    assert got.size == 2
    assert any("no row" in note for note in got.notes)


def test_added_tokens_keep_what_they_are_in_a_union(three):
    entries = json.loads(plan(three, UNION).files["tokenizer.json"])["added_tokens"]
    assert {entry["content"]: entry["special"] for entry in entries} == {"<s>": True, "<end>": True}


def test_a_model_as_long_as_the_reference_may_lack_its_tokenizer(tmp_path):
    weights = {
        "a": model(tmp_path / "a", words("<unk>", "x")),
        "b": model(tmp_path / "b", None, 2),
        "c": model(tmp_path / "c", words("<unk>", "z", "x")),
    }
    got = plan(weights)
    assert got.rows_in["b"].tolist() == [0, 1]
    assert got.rows_in["c"].tolist() == [0, 2]


def test_a_folder_with_nothing_but_a_tokenizer_can_be_the_source(tmp_path):
    weights = {name: model(tmp_path / name, words("<unk>", "x", "y")) for name in "ab"}
    model(tmp_path / "t", words("<unk>", "y"))
    (tmp_path / "t" / "config.json").unlink()
    got = plan(weights, f"tokenizer_source: {tmp_path / 't'}")
    assert (got.size, got.rows_in["a"].tolist()) == (2, [0, 2])


def test_a_tokenizer_folder_with_the_references_tokens_keeps_its_padding(tmp_path):
    weights = {name: model(tmp_path / name, words("<unk>", "x"), 8) for name in "ab"}
    model(tmp_path / "t", words("<unk>", "x"))
    assert plan(weights, f"tokenizer_source: {tmp_path / 't'}").size == 8


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_every_missing_tokenizer_is_named_with_its_folder_and_the_remedy(tmp_path):
    weights = {
        "a": model(tmp_path / "a", words("<unk>", "x")),
        "b": model(tmp_path / "b", None, 2),
        "c": model(tmp_path / "c", None, 2),
    }
    messages = problems(weights, UNION)
    assert [str(tmp_path / name) in problem for name, problem in zip("bc", messages, strict=True)] == [True, True]
    assert all("save_pretrained" in problem for problem in messages)


def test_rows_that_differ_need_tokenizers_also_without_a_setting(tmp_path):
    weights = {"a": model(tmp_path / "a", None, 4), "b": model(tmp_path / "b", None, 2)}
    assert len(problems(weights)) == 2


def test_a_broken_tokenizer_is_named(tmp_path):
    weights = {name: model(tmp_path / name, words("<unk>", "x")) for name in "ab"}
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    (problem,) = problems(weights, UNION)
    assert problem.startswith(f"{tmp_path / 'b' / 'tokenizer.json'}: not a tokenizer")


def test_token_entries_that_cannot_be_met_are_reported_together_with_their_lines(three):
    text = """
tokenizer:
  source: union
  tokens:
    d: {source: {kind: model_token, model: a, token: nowhere}}
    e: {source: a}
    y: {source: {kind: model_token, model: b, token_id: 99}}
"""
    messages = problems(three, text)
    assert ["nowhere" in messages[0], "'e'" in messages[1], "99" in messages[2]] == [True, True, True]
    lines = [int(problem.split(":")[1]) for problem in messages]
    assert lines == [lines[0], lines[0] + 1, lines[0] + 2]


def test_a_source_that_is_nowhere_is_refused_with_the_line(three):
    """Together with the tokenizers that are missing."""
    (three["c"].folder / "tokenizer.json").unlink()
    missing, nowhere = problems(three, "tokenizer_source: ./nowhere")
    assert str(three["c"].folder) in missing
    assert nowhere.startswith("c.yml:9: tokenizer './nowhere': no such folder")
