"""Merge methods in the algebra give what the same merge file gives."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from merge_files import ours
from safetensors.torch import load_file

import weightops as wo
from weightops.algebra.opening import open_all
from weightops.ops.ties import ties


@pytest.fixture
def models(tmp_path):
    folders = [tiny.write(tmp_path / f"m{seed}", tiny.llama(seed, dtype=torch.bfloat16)) for seed in range(3)]
    return [wo.open(folder) for folder in folders]


def test_ties_in_the_algebra_is_the_reference_on_the_task_vectors_rounded_once(models, tmp_path):
    base, a, b = models
    merged = wo.ties([a - base, b - base], density=[0.3, 0.6], weight=0.5).on(base)
    merged.save(tmp_path / "out", progress=False)
    written = load_file(tmp_path / "out/model.safetensors")
    for name in base.names:
        start = base.tensor(name).float()
        deltas = torch.stack([model.tensor(name).float() - start for model in (a, b)])
        expected = (start + ties(deltas, density=[0.3, 0.6], weight=0.5)).bfloat16()
        assert torch.equal(merged.tensor(name), expected)
        assert torch.equal(written[name], expected)


def test_a_scaled_task_vector_is_refused_with_what_to_do(models):
    base, a, b = models
    with pytest.raises(wo.WeightopsError, match="save what you scaled"):
        wo.ties([0.5 * (a - base), b - base]).on(base).plan()


def test_an_unknown_parameter_names_the_nearest(models):
    base, a, _ = models
    with pytest.raises(wo.WeightopsError, match="did you mean 'density'"):
        wo.ties([a - base], densty=0.5)


def test_models_in_place_of_differences_are_refused(models):
    with pytest.raises(wo.WeightopsError, match=r"a - base, b - base"):
        wo.ties(models[1:])


def test_a_method_that_is_not_registered_is_no_attribute():
    with pytest.raises(AttributeError, match="tees"):
        _ = wo.tees


NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]


@pytest.fixture
def adapted(tmp_path):
    """The names of a base, of two adapters on it, of another full model and of an adapter on that."""
    base, full = (
        tiny.write(tmp_path / name, tiny.llama(seed), config={"num_hidden_layers": 2}) for seed, name in enumerate("bf")
    )
    loras = [tiny.lora(tmp_path / f"lora{seed}", tiny.read(base), NAMES[: seed + 1], seed) for seed in range(3)]
    one, two, three = (f"{base}+{lora}" for lora in loras)
    return {"base": base, "one": one, "two": two, "three": three, "full": full, "on_full": f"{full}+{loras[1]}"}


@pytest.mark.parametrize(
    ("base", "models"),
    [
        ("base", ("one", "two")),
        ("base", ("one", "full")),
        ("base", ("on_full", "two")),
        ("one", ("full", "two")),
        ("one", ("two", "three")),
        ("one", ("on_full", "base")),
        ("base", ("base", "full")),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["opened together", "opened apart"])
def test_models_with_adapters_merge_to_the_bytes_of_the_merge_file(base, models, apart, adapted, tmp_path):
    named = [adapted[name] for name in (base, *models)]
    text = (
        f"merge_method: ties\nbase_model: {named[0]}\nparameters: {{density: 0.4}}\n"
        f"models: [{{model: {named[1]}}}, {{model: {named[2]}}}]\n"
    )
    opened, *others = [wo.open(name) for name in named] if apart else open_all(named)
    merged = wo.ties([other - opened for other in others], density=0.4).on(opened)
    out = merged.save(tmp_path / "python", progress=False)
    expected = ours(text, tmp_path / "yaml")
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(tiny.same_bytes(written[name], expected[name]) for name in expected)


def test_a_task_vector_of_another_base_is_refused(adapted):
    base, one, full = (wo.open(adapted[name]) for name in ("base", "one", "full"))
    with pytest.raises(wo.WeightopsError, match="on the base they were taken from"):
        wo.ties([one - full, one - base]).on(base).plan()


def test_an_adapter_of_another_model_is_a_problem_of_the_plan(adapted, tmp_path):
    small = wo.open(tiny.write(tmp_path / "small", tiny.llama(0, layers=1)))
    adapter = wo.open_adapter(adapted["two"].partition("+")[2])
    with pytest.raises(wo.WeightopsError, match="this adapter is for another base"):
        wo.ties([adapter, adapter]).on(small).plan().check()


def test_a_selection_that_matches_nothing_is_a_problem_of_the_plan(models, tmp_path):
    base, a, b = models
    with pytest.raises(wo.WeightopsError, match=r"only\('nomatch'\): leaves no tensor of the delta"):
        wo.ties([(a - base).only("nomatch"), b - base]).on(base).save(tmp_path / "out", progress=False)
