"""A guard vector drops embeddings and head; the guard's label rows are found there, and copied when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from weightops.algebra.opening import open_all
from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.compose import Composition
from weightops.guard.labels import find_labels, token_of
from weightops.io.tokenizer import tokenizer_of
from weightops.output.provenance import content
from weightops.output.save import save

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OLD, NEW = ("safe", "unsafe"), ("<safe>", "<unsafe>")
CONFIG = {"model_type": "llama", "vocab_size": 24}


def model(folder: Path, tensors: tiny.Tensors, words: list[str] | None = None, config: dict | None = None) -> Path:
    """A folder with weights, config and tokenizer."""
    rows = tensors[EMBED].shape[0]
    tiny.write(folder, tensors, config=CONFIG | {"vocab_size": rows} if config is None else config)
    tiny.tokenizer(folder, words)
    return folder


def card(folder: Path, labels: tuple[str, str]) -> None:
    """``guard.json`` in a guard's folder."""
    words = tokenizer_of(wo.open(folder).source)
    GuardCard("Is it safe?", labels, tuple(token_of(words, label) for label in labels), 0.4).write(folder)


def rows_learnt(tensors: tiny.Tensors, ids: tuple[int, ...]) -> tiny.Tensors:
    """The same weights with some rows of embeddings and head moved."""
    learnt = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in {EMBED, HEAD} & learnt.keys():
        learnt[name][list(ids)] += 0.5
    return learnt


def compose(guard: Path, base: Path, target: Path, out: Path | None = None, **options: object) -> Composition:
    """Plan, and save where there is a place."""
    composition = wo.compose_guard(*open_all([guard, base, target]), **options)  # type: ignore[arg-type]
    if out is not None:
        save(composition.plan, composition.package, out, progress=False)
    return composition


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A guard that answers with words its base knew already; the target has the words in another order, and more."""
    base = tiny.llama(0)
    guard = model(tmp_path / "guard", rows_learnt(tiny.perturbed(base, 1), (3, 4)))
    card(guard, OLD)
    words = [*tiny.WORDS[:3], "extra", "more", *reversed(tiny.WORDS[3:])]
    target = model(tmp_path / "target", tiny.llama(7, vocab=30), words)
    return guard, model(tmp_path / "base", base), target


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A guard that answers with tokens of its own, behind its base's vocabulary."""
    rows, tied = len(tiny.WORDS), request.param
    base = tiny.transformer(tmp_path / "base", "llama", tied=tied, vocab=rows)
    target = tiny.transformer(tmp_path / "target", "llama", tied=tied, vocab=rows, seed=3)
    mine = tiny.perturbed(tiny.read(base), 1)
    grown = {name: torch.cat([t, 0.1 * torch.randn(2, 16)]) if name in (EMBED, HEAD) else t for name, t in mine.items()}
    guard = model(tmp_path / "guard", grown, [*tiny.WORDS, *NEW])
    card(guard, NEW)
    return guard, base, target


def test_a_note_names_the_labels_whose_rows_are_dropped_and_the_option_that_copies_them(old):
    (note,) = compose(*old).plan.notes
    assert all(text in note for text in ("'safe'", "'unsafe'", EMBED, HEAD, "labels='safe,unsafe'"))


@pytest.mark.parametrize(
    ("saved", "loaded"), [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_labels_whose_rows_the_guard_has_not_learnt_need_no_note(tmp_path, saved, loaded):
    """Whatever the dtype in which guard and base were saved."""
    base = tiny.cast(tiny.llama(0, dtype=torch.float32), getattr(torch, loaded))
    moved = tiny.perturbed(base, 1) | {name: base[name] for name in (EMBED, HEAD)}
    guard = model(tmp_path / "guard", tiny.cast(moved, getattr(torch, saved)))
    card(guard, OLD)
    assert compose(guard, model(tmp_path / "base", base), model(tmp_path / "target", base)).plan.notes == ()


def test_new_rows_that_no_card_names_are_noted(new):
    guard, base, target = new
    (guard / "guard.json").unlink()
    (note,) = compose(guard, base, target).plan.notes
    assert str(guard) in note
    assert "labels='SAFE,UNSAFE'" in note


def test_labels_copy_the_guard_rows_of_those_words_and_nothing_else(old, tmp_path):
    guard, _, target = old
    composition = compose(*old, tmp_path / "out", labels=OLD)
    assert composition.plan.notes == ()
    g, t, result = tiny.read(guard), tiny.read(target), tiny.read(tmp_path / "out")
    theirs, mine = (tokenizer_of(wo.open(folder).source) for folder in (guard, target))
    for name in (EMBED, HEAD):
        expected = t[name].clone()
        for word in OLD:
            assert mine.token_to_id(word) != theirs.token_to_id(word)
            expected[mine.token_to_id(word)] = g[name][theirs.token_to_id(word)]
        assert tiny.same_bytes(result[name], expected)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (target / "tokenizer.json").read_bytes()


def test_the_guard_card_is_carried_with_the_ids_of_the_target(old, tmp_path):
    guard, _, target = old
    mine = tokenizer_of(wo.open(target).source)
    for out, labels in ((tmp_path / "with", OLD), (tmp_path / "without", ())):
        compose(*old, out, labels=labels)
        carried, original = GuardCard.read(out), GuardCard.read(guard)
        assert carried.label_ids == tuple(mine.token_to_id(word) for word in OLD)
        assert carried.label_ids != original.label_ids
        assert (carried.system, carried.labels, carried.threshold) == ("Is it safe?", OLD, 0.4)


def test_new_label_tokens_grow_the_vocabulary_and_the_output_loads_in_transformers(new, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    guard, _, target = new
    compose(*new, tmp_path / "out", labels=NEW)
    rows = len(tiny.WORDS)
    g, t, result = tiny.read(guard), tiny.read(target), tiny.read(tmp_path / "out")
    assert (HEAD in t) == (HEAD in result)
    for name in {EMBED, HEAD} & t.keys():
        assert tiny.same_bytes(result[name], torch.cat([t[name], g[name][rows:]]))
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [words.convert_tokens_to_ids(label) for label in NEW] == [rows, rows + 1]
    assert words("hello <unsafe>")["input_ids"] == [tiny.WORDS.index("hello"), rows + 1]
    assert GuardCard.read(tmp_path / "out").label_ids == (rows, rows + 1)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.vocab_size == rows + 2
    assert model.get_output_embeddings().weight.shape[0] == rows + 2
    assert tiny.same_bytes(model.get_input_embeddings().weight[rows:], g[EMBED][rows:])
    inputs = words("hello", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_new_labels_take_the_padding_rows_of_an_embedding_that_has_some(new, tmp_path):
    guard, base, target = new
    t = {n: torch.cat([x, torch.zeros(3, 16)]) if n in (EMBED, HEAD) else x for n, x in tiny.read(target).items()}
    padded = model(tmp_path / "padded", t)
    compose(guard, base, padded, tmp_path / "out", labels=NEW)
    rows, g, result = len(tiny.WORDS), tiny.read(guard), tiny.read(tmp_path / "out")
    for name in {EMBED, HEAD} & t.keys():
        assert result[name].shape[0] == rows + 3
        assert tiny.same_bytes(result[name][:rows], t[name][:rows])
        assert tiny.same_bytes(result[name][rows : rows + 2], g[name][rows:])
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == rows + 3


def test_the_vocabulary_of_a_text_model_inside_a_larger_one_grows_in_its_text_config(new, tmp_path):
    guard, base, target = new
    inner = model(tmp_path / "inner", tiny.read(target), config={"text_config": {"vocab_size": 13, "hidden_size": 16}})
    compose(guard, base, inner, tmp_path / "out", labels=NEW)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"text_config": {"vocab_size": 15, "hidden_size": 16}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_copied_rows_are_rounded_once_to_the_dtype_of_the_target(dtype, old, tmp_path):
    guard, base, target = old
    precise = {name: t + 1e-3 * torch.randn_like(t) for name, t in tiny.cast(tiny.read(guard), torch.float64).items()}
    tiny.write(guard, precise)
    tiny.write(target, tiny.cast(tiny.read(target), dtype))
    compose(guard, base, target, tmp_path / "out", labels=OLD)
    result, words = tiny.read(tmp_path / "out"), tokenizer_of(wo.open(target).source)
    for name in (EMBED, HEAD):
        assert tiny.same_bytes(result[name][words.token_to_id("safe")], precise[name][3].to(dtype))


@pytest.mark.parametrize("labels", [OLD, ()], ids=["labels", "no labels"])
def test_the_record_holds_the_content_of_the_sources_as_they_lie_whatever_rows_are_copied(labels, old, tmp_path):
    compose(*old, tmp_path / "out", labels=labels)
    made = json.loads((tmp_path / "out/weightops.json").read_text())
    target = wo.open(old[2]).source
    (entry,) = (source for source in made["sources"] if source["name"] == str(old[2]))
    assert entry["tensors"] == len(target.tensors)
    assert entry["content"] == content({tensor: tensor_digest(tensor) for tensor in target.tensors.values()})


def test_the_record_holds_the_whole_content_of_a_target_whose_vocabulary_grows(new, tmp_path):
    compose(*new, tmp_path / "out", labels=NEW)
    made = json.loads((tmp_path / "out/weightops.json").read_text())
    target = wo.open(new[2]).source
    (entry,) = (source for source in made["sources"] if source["name"] == str(new[2]))
    assert entry["content"] == content({tensor: tensor_digest(tensor) for tensor in target.tensors.values()})


def test_a_label_that_is_not_one_token_of_the_guard_is_an_error(old):
    (old[0] / "guard.json").unlink()
    with pytest.raises(WeightopsError, match=r"label 'not safe' is not one token of .*guard"):
        compose(*old, labels=["not safe", "unsafe"])


def test_one_word_of_the_guards_card_stands_for_both_in_each_spelling(old, tmp_path):
    card(old[0], OLD)
    both = compose(*old, labels=OLD).plan.identity()
    spellings = ("safe", "unsafe", "safe,unsafe", " unsafe, safe", ["unsafe"])
    assert [compose(*old, labels=labels).plan.identity() for labels in spellings] == [both] * len(spellings)


def test_a_word_that_the_guards_card_does_not_name_is_refused_with_those_it_names(old):
    card(old[0], OLD)
    for labels in ("hello", "safe,hello", ["safe", "unsafe", "hello"]):
        with pytest.raises(
            WeightopsError,
            match="label 'hello' is not in the guard's guard.json, which names 'safe'.*"
            "copy the rows of these with labels='safe,unsafe'",
        ):
            compose(*old, labels=labels)


def test_a_missing_or_broken_tokenizer_is_named(old):
    file = old[1] / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(WeightopsError, match=rf"{file}: not a tokenizer"):
        compose(*old, labels=OLD)
    file.unlink()
    with pytest.raises(WeightopsError, match=rf"{file}: missing"):
        compose(*old, labels=OLD)


def test_labels_that_are_no_token_of_the_target_need_the_option_that_adds_them(new):
    with pytest.raises(
        WeightopsError,
        match="label '<safe>' is not one token of the target; add its token and copy its row with labels='<safe>",
    ):
        compose(*new)


def test_a_token_without_a_row_in_the_guard_cannot_be_copied(old):
    guard, base, target = old
    short = {n: t[:4].clone() if n in (EMBED, HEAD) else t for n, t in tiny.read(guard).items()}
    tiny.write(guard, short)
    with pytest.raises(WeightopsError, match=r"'unsafe' is token 4, but .*weight in .*guard.* has 4 rows"):
        compose(guard, base, target, labels=OLD)


@pytest.mark.parametrize("new", [True], ids=["tied"], indirect=True)
def test_a_tied_guard_gives_an_untied_target_its_embedding_row_as_head_row(new, tmp_path):
    guard, base, target = new
    g, t = tiny.read(guard), tiny.read(target)
    untied = model(tmp_path / "untied", t | {HEAD: tiny.perturbed({HEAD: t[EMBED]}, 5)[HEAD]})
    compose(guard, base, untied, tmp_path / "out", labels=NEW)
    rows, result = len(tiny.WORDS), tiny.read(tmp_path / "out")
    for name in (EMBED, HEAD):
        assert tiny.same_bytes(result[name][rows:], g[EMBED][rows:])


@pytest.mark.parametrize("new", [False], ids=["untied"], indirect=True)
def test_an_untied_guard_cannot_give_its_head_rows_to_a_tied_target(new, tmp_path):
    guard, base, target = new
    tied = model(tmp_path / "tied", {name: t for name, t in tiny.read(target).items() if name != HEAD})
    with pytest.raises(WeightopsError, match=rf"{HEAD}.*tied"):
        compose(guard, base, tied, labels=NEW)


def test_embedding_rows_of_another_width_cannot_be_copied(old, tmp_path):
    guard, base, _ = old
    wide = model(tmp_path / "wide", tiny.llama(0, hidden=32))
    with pytest.raises(WeightopsError, match=r"a row has 16 numbers in .*guard, 32 in .*wide"):
        compose(guard, base, wide, labels=OLD)


def test_labels_do_not_let_included_embeddings_of_other_lengths_through(old):
    composition = compose(*old, labels=OLD, include=["."])
    assert any(EMBED in problem and "shape" in problem for problem in composition.plan.problems)


def test_a_word_is_a_token_as_it_is_or_with_the_space_before_it():
    from tokenizers import Tokenizer, models

    words = Tokenizer(
        models.BPE(vocab={" ": 0, "n": 1, "o": 2, "y": 3, " n": 4, " no": 5}, merges=[(" ", "n"), (" n", "o")])
    )
    assert token_of(words, "y") == 3
    assert token_of(words, "no") == 5
    assert token_of(words, "on") is None


def test_labels_carry_their_token_in_each_of_the_three(old):
    models_ = [wo.open(folder).source for folder in old]
    safe, unsafe = find_labels(OLD, *models_)
    assert (safe.guard, safe.base, unsafe.guard, unsafe.base) == (3, 3, 4, 4)
    assert (safe.target, unsafe.target) == (len(tiny.WORDS) + 1, len(tiny.WORDS))
