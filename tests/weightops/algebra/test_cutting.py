"""A cut model is a checkpoint: the kept layers' bytes under new names, and takes part in arithmetic."""

from __future__ import annotations

import json

import pytest
import tiny_models as tiny
import torch
from sparse_files import delta_of, drawn

import weightops as wo
from weightops.algebra.loading import load
from weightops.output.provenance import verify

LAYERS = 4
CONFIG = {"model_type": "llama", "num_hidden_layers": LAYERS, "architectures": ["LlamaForCausalLM"]}
KEPT = [0, 2, 3]


@pytest.fixture
def folders(tmp_path):
    """A base and a tuned model in two shards, of four layers each."""
    base = tiny.llama(0, layers=LAYERS)
    tuned = tiny.perturbed(base, 1)
    return [
        tiny.write(tmp_path / name, tensors, shards=2, config=CONFIG)
        for name, tensors in (("base", base), ("tuned", tuned))
    ]


def named(tensors: tiny.Tensors, kept=KEPT) -> tiny.Tensors:
    """The tensors of a cut, by their new names."""
    new = {f".layers.{old}.": f".layers.{number}." for number, old in enumerate(kept)}
    places = {name: next((place for place in new if place in name), None) for name in tensors}
    return {
        name.replace(place, new[place]) if place else name: tensors[name]
        for name, place in places.items()
        if place or ".layers." not in name
    }


def test_a_cut_has_the_bytes_of_the_kept_layers_and_nothing_of_the_others(folders, tmp_path):
    out = wo.extract(str(folders[1]), KEPT).save(tmp_path / "cut", progress=False)
    written, expected = tiny.read(out), named(tiny.read(folders[1]))
    assert written.keys() == expected.keys()
    assert all(tiny.same_bytes(written[name], expected[name]) for name in expected)
    assert verify(out) == []
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
    assert json.loads((out / "weightops.json").read_text())["recipe"]["layers"] == KEPT
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "weightops.json",
    ]
    card = (out / "README.md").read_text()
    assert "Layers 0,2-3 of the 4 of" in card
    assert "- pruned" in card


def test_a_cut_of_a_base_with_an_adapter_is_the_cut_of_their_sum(folders, tmp_path):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(LAYERS)]
    adapter = tiny.lora(tmp_path / "lora", tiny.read(folders[0]), names, seed=3)
    both = f"{folders[0]}+{adapter}"
    expected = named({name: wo.open(both).tensor(name) for name in wo.open(both).names})
    cut = wo.extract(both, KEPT)
    assert set(cut.names) == expected.keys()
    assert all(tiny.same_bytes(cut.tensor(name), expected[name]) for name in expected)
    out = cut.save(tmp_path / "cut", progress=False)
    assert "`" + str(adapter) + "`" in (out / "README.md").read_text()


@pytest.mark.parametrize("semantics", ["add", "replace"])
def test_a_cut_of_a_base_with_a_sparse_delta_is_the_cut_of_their_sum(folders, tmp_path, semantics):
    draws = {f"model.layers.{layer}.mlp.up_proj.weight": drawn((32, 16), 0.1, layer) for layer in range(LAYERS)}
    changed = {name: (at, new.bfloat16() if semantics == "replace" else new) for name, (at, new) in draws.items()}
    both = f"{folders[0]}+{delta_of(tmp_path / 'delta.safetensors', folders[0], changed, semantics=semantics)}"
    cut, whole = wo.extract(both, KEPT), wo.open(both)
    expected = named({name: whole.tensor(name) for name in whole.names})
    assert all(tiny.same_bytes(cut.tensor(name), expected[name]) for name in expected)
    assert cut.plan().problems == ()


@pytest.mark.parametrize("kept", [[0, 1, 2], KEPT])
def test_cutting_commutes_with_arithmetic_and_its_rules(folders, kept):
    base, tuned = (wo.open(str(folder)) for folder in folders)
    delta = 0.5 * (tuned - base).only(r"layers\.[23]\.").without("norm") * {"mlp": 2.0}
    before = wo.extract(base + delta, kept)
    expected = named({name: (base + delta).tensor(name) for name in base.names}, kept)
    assert all(tiny.same_bytes(before.tensor(name), expected[name]) for name in expected)
    assert before.plan().problems == ()
    apart = wo.extract(base, kept) + (wo.extract(tuned, kept) - wo.extract(base, kept))
    whole = named(tiny.read(folders[1]), kept)
    for name in apart.names:
        torch.testing.assert_close(apart.tensor(name), whole[name])


def test_a_change_that_only_layers_left_out_had_is_dropped(folders):
    base, tuned = (wo.open(str(folder)) for folder in folders)
    cut = wo.extract(base + (tuned - base).only(r"layers\.3\."), 2)
    assert cut.delta.changes == ()
    wrong = wo.extract(base + (tuned - base).only("no such tensor"), 2)
    assert "leaves no tensor of the delta" in wrong.plan().problems[0]


def test_a_cut_of_a_cut_names_the_layers_of_the_model_on_disk(folders):
    twice = wo.extract(wo.extract(str(folders[0]), KEPT), [1, 2])
    once = wo.extract(str(folders[0]), [2, 3])
    assert repr(twice) == repr(once)
    assert repr(once).endswith("layers 2-3 of 4, 21 tensors>")
    assert all(tiny.same_bytes(twice.tensor(name), once.tensor(name)) for name in once.names)
    assert twice.source == once.source


def test_an_unfinished_cut_is_not_resumed_by_a_cut_of_other_layers(folders):
    first, second = (wo.extract(str(folders[0]), kept).plan() for kept in ([0, 1], [2, 3]))
    assert [file.head for file in first.files] == [file.head for file in second.files]
    assert first.identity() != second.identity()


def test_what_cannot_be_cut_is_refused(folders, tmp_path):
    with pytest.raises(wo.WeightopsError, match="base: 9 layers of 4 cannot be kept"):
        wo.extract(str(folders[0]), 9)
    with pytest.raises(wo.WeightopsError, match=r"has no config.json, which says how many layers it has"):
        wo.extract(str(next(folders[0].glob("*.safetensors"))), 1)
    base, tuned = (wo.open(str(folder)) for folder in folders)
    with pytest.raises(wo.WeightopsError, match="cannot extract layers of a MergedCheckpoint"):
        wo.extract(wo.ties([tuned - base]).on(base), 1)
    with pytest.raises(wo.WeightopsError, match="layers were cut out of it; save it first"):
        load(wo.extract(base, 1))
