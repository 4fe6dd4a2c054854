"""How a union of vocabularies splits text: the reference's tokens as before, the new ones where they apply."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.common import ModelReference
from mergekit.tokenizer.build import build_tokenizer
from tiny_vocabularies import bpe, model, out_ids, plan, special, unigram
from tokenizers import Tokenizer
from tokenizers.models import BPE

UNION = "tokenizer_source: union"


def test_a_word_from_another_bpe_vocabulary_does_not_break_the_references_words_apart(tmp_path):
    """mergekit cuts b's "he" out of "the" before a's merges see it; here a's own merges go first."""
    weights = {
        "a": model(tmp_path / "a", bpe("theoc", "t h", "th e")),
        "b": model(tmp_path / "b", bpe("theoc", "h e", "o c")),
    }
    tokenizer = Tokenizer.from_str(plan(weights, UNION).files["tokenizer.json"].decode())
    assert tokenizer.encode("the").tokens == ["the"]
    assert tokenizer.encode("he").tokens == ["he"]
    assert tokenizer.encode("oc").tokens == ["oc"]
    references = [ModelReference.parse(str(one.folder)) for one in weights.values()]
    broken = build_tokenizer(references[0], references, "union", False, []).tokenizer
    assert broken.tokenize("the") == ["t", "he"]


def test_a_merge_that_makes_no_new_token_stays_out(tmp_path):
    """a has "ab" and never makes it of its letters; b does, and brings "abc"."""
    first = bpe("abc")
    first.model = BPE({"a": 0, "b": 1, "c": 2, "ab": 3}, [])
    weights = {"a": model(tmp_path / "a", first), "b": model(tmp_path / "b", bpe("abc", "a b", "ab c"))}
    tokenizer = Tokenizer.from_str(plan(weights, UNION).files["tokenizer.json"].decode())
    assert tokenizer.get_vocab_size() == 5
    assert tokenizer.encode("ab").tokens == ["a", "b"]


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="abch", max_size=12))
def test_a_union_of_bpe_vocabularies_gives_every_text_back(text):
    joined = bpe_union()
    assert joined.decode(joined.encode(text).ids) == text


@cache
def bpe_union() -> Tokenizer:
    folder = Path(tempfile.mkdtemp())
    try:
        first, second = bpe("abch", "a b", "ab c"), bpe("abch", "b c", "a bc", "c h")
        weights = {"a": model(folder / "a", special(first, "<s>")), "b": model(folder / "b", second)}
        return Tokenizer.from_str(plan(weights, UNION).files["tokenizer.json"].decode())
    finally:
        shutil.rmtree(folder)


def test_a_unigram_union_has_the_pieces_of_both_at_their_numbers(tmp_path):
    weights = {
        "a": model(tmp_path / "a", special(unigram(a=-1.0, b=-1.5), "<s>")),
        "b": model(tmp_path / "b", special(unigram(b=-1.0, ab=-0.5), "<t>")),
    }
    got = plan(weights, UNION)
    assert out_ids(got) == {"<unk>": 0, "a": 1, "b": 2, "<s>": 3, "ab": 4, "<t>": 5}
    tokenizer = Tokenizer.from_str(got.files["tokenizer.json"].decode())
    assert tokenizer.encode("ab<s>b").ids == [4, 3, 2]


def test_tokens_of_another_kind_of_tokenizer_leave_the_splitting_alone_and_are_said(tmp_path):
    weights = {"a": model(tmp_path / "a", bpe("abc", "a b")), "b": model(tmp_path / "b", unigram(bc=-1.0))}
    got = plan(weights, UNION)
    tokenizer = Tokenizer.from_str(got.files["tokenizer.json"].decode())
    assert tokenizer.encode("abc").tokens == ["ab", "c"]
    assert any("2 tokens of b" in note for note in got.notes)
    assert np.array_equal(np.flatnonzero(got.rows_in["a"] < 0), [4, 5])
