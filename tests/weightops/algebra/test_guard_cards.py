"""A guard's card goes with the guard through the algebra, or the plan says why it does not."""

from __future__ import annotations

import json
import warnings

import pytest
import tiny_models as tiny

import weightops as wo

CARD = {"system": "s", "labels": ["safe", "unsafe"], "label_ids": [3, 4], "threshold": 0.5}
WORDS = ["<s>", "</s>", "x", "safe", "unsafe", "y"]


@pytest.fixture
def models(tmp_path):
    """Folders of base, guard and target of one vocabulary; the guard has a card."""
    base = tiny.llama(0)
    for seed, name in enumerate(("base", "guard", "target")):
        tiny.write(tmp_path / name, tiny.perturbed(base, seed))
        tiny.tokenizer(tmp_path / name, WORDS)
    (tmp_path / "guard/guard.json").write_text(json.dumps(CARD))
    return [wo.open(tmp_path / name) for name in ("base", "guard", "target")]


def card_of(checkpoint, out):
    """The card that saving writes, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = checkpoint.save(out, progress=False) / "guard.json"
    return json.loads(file.read_text()) if file.exists() else None, [str(warning.message) for warning in caught]


def test_a_target_plus_a_guard_vector_is_asked_as_the_guard(models, tmp_path):
    base, guard, target = models
    for number, made in enumerate(
        [
            target + (guard - base),
            target + 0.5 * (guard - base).only("mlp"),
            guard + (target - base),
            guard,
            wo.ties([guard - base, target - base]).on(base),
        ]
    ):
        assert card_of(made, tmp_path / f"out{number}") == (CARD, [])


def test_an_adapters_card_goes_along_where_base_and_guard_share_their_files(models, tmp_path):
    base, _, target = models
    lora = tiny.lora(tmp_path / "lora", tiny.llama(0), ["model.layers.0.mlp.up_proj.weight"], 1)
    (lora / "guard.json").write_text(json.dumps(CARD))
    made = target + (wo.open(f"{tmp_path / 'base'}+{lora}") - base)
    assert card_of(made, tmp_path / "out") == (CARD, [])
    assert card_of(target + (base - wo.open(f"{tmp_path / 'base'}+{lora}")), tmp_path / "less") == (None, [])


def test_what_has_no_guard_or_takes_one_away_has_no_card(models, tmp_path):
    base, guard, target = models
    for number, made in enumerate([target + (target - base), target - (guard - base), guard + (base - guard)]):
        assert card_of(made, tmp_path / f"out{number}") == (None, [])


def test_another_vocabulary_or_two_guards_or_a_broken_card_are_said(models, tmp_path):
    base, guard, target = models
    second = wo.open(tiny.copy(tmp_path / "guard", tmp_path / "second"))
    tiny.rewrite(tmp_path / "second", tiny.perturbed(tiny.llama(0), 9))
    second = wo.open(tmp_path / "second")
    card, (note,) = card_of(target + (guard - base) + (second - base), tmp_path / "two")
    assert card is None
    assert "guard and " in note
    assert "each have one" in note
    tiny.tokenizer(tmp_path / "target", ["<s>", "</s>", "safe", "unsafe", "x", "y"])
    other = wo.open(tmp_path / "target") + (guard - base)
    card, (note,) = card_of(other, tmp_path / "other")
    assert card is None
    assert "label 'safe' is token 3 of the guard, but that is 'unsafe' in" in note
    assert other.plan().notes == (note,)
    (tmp_path / "guard/guard.json").write_text("old")
    card, (note,) = card_of(wo.open(tmp_path / "guard"), tmp_path / "broken")
    assert card is None
    assert "not valid JSON" in note
