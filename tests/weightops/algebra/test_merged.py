"""Merge methods in the algebra give what the same merge file gives."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models as tiny
import torch
from merge_files import ours
from safetensors.torch import load_file

import weightops as wo
from weightops.algebra.changes import Change
from weightops.algebra.checkpoint import Delta
from weightops.algebra.opening import open_all
from weightops.io.adapter import Adapter
from weightops.merge.config.reading import parse
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
    with pytest.raises(wo.WeightopsError, match="save the scaled or added models first"):
        wo.ties([0.5 * (a - base), b - base]).on(base).plan()


def test_an_unknown_parameter_names_the_nearest(models):
    base, a, _ = models
    with pytest.raises(wo.WeightopsError, match="did you mean 'density'"):
        wo.ties([a - base], densty=0.5)


def test_models_in_place_of_differences_are_refused(models):
    with pytest.raises(wo.WeightopsError, match=r"a - base, b - base"):
        wo.ties(models[1:])


def test_one_difference_without_a_list_and_a_base_that_is_not_open_are_refused(models):
    base, a, _ = models
    with pytest.raises(wo.WeightopsError, match=r"write ties\(\[a - base, b - base\]\)\.on\(base\)"):
        wo.ties(a - base)
    with pytest.raises(wo.WeightopsError, match=r"ties\(\.\.\.\)\.on needs a checkpoint, not str; open the model"):
        wo.ties([a - base]).on("base")


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


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"density": -5}, "density must be in [0, 1], not -5"),
        ({"density": 3}, "density must be in [0, 1], not 3"),
        ({"density": [0.5, -1]}, "density must be in [0, 1], not -1"),
        ({"density": "abc"}, "density must be a number, not 'abc'"),
        ({"density": [0.1, 0.2, 0.3]}, "density has 3 values for 2 models; give one number, or one for each model"),
        ({"normalize": 3}, "normalize must be true or false, not 3"),
        ({"lambda_": [1.0, 2.0]}, "lambda must be a number, not [1.0, 2.0]"),
        ({"weight": None}, "weight must be a number, not None"),
    ],
)
def test_a_wrong_setting_is_refused_at_the_call_in_the_words_of_a_merge_file(models, tmp_path, settings, problem):
    base, a, b = models
    with pytest.raises(wo.WeightopsError) as caught:
        wo.ties([a - base, b - base], **settings)
    assert caught.value.problems == (problem,)
    ((name, value),) = settings.items()
    if value is None or isinstance(value, list):  # in a file a list runs over the layers, and null is not set
        return
    text = f"merge_method: ties\nbase_model: x\nmodels: [{{model: y}}, {{model: z}}]\nparameters: {{{name}: {value}}}\n"
    with pytest.raises(wo.WeightopsError) as caught:
        parse(text, "c.yml")
    assert caught.value.problems == (f"c.yml:4: {problem}",)


def test_a_setting_without_default_must_be_given(models):
    base, a, _ = models
    with pytest.raises(wo.WeightopsError, match="nearswap needs 't', which has no default"):
        wo.nearswap([a - base])


def test_settings_may_be_numbers_of_numpy_and_torch(models, tmp_path):
    base, a, b = models
    plain = wo.ties([a - base, b - base], density=[0.5, 0.25], weight=0.5).on(base)
    other = wo.ties([a - base, b - base], density=np.array([0.5, 0.25]), weight=torch.tensor(0.5)).on(base)
    assert other.merged == plain.merged
    assert other.plan().recipe == plain.plan().recipe


def test_a_merge_is_saved_in_another_dtype(models, tmp_path):
    base, a, _ = models
    merged = wo.ties([a - base], density=0.5).on(base)
    merged.save(tmp_path / "out", dtype="float32", progress=False)
    written = load_file(tmp_path / "out/model.safetensors")
    for name in base.names:
        start = base.tensor(name).float()
        expected = start + ties((a.tensor(name).float() - start).unsqueeze(0), density=0.5)
        assert written[name].dtype == torch.float32
        assert torch.equal(written[name], expected)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"dtype": "bf16"}, "dtype must be one of auto, float16, bfloat16, float32, float64, fp8-block, not 'bf16'"),
        (
            {"dtype": torch.bfloat16},
            "dtype must be one of auto, float16, bfloat16, float32, float64, fp8-block, not torch.bfloat16",
        ),
        ({"shard_size": 0}, "shard_size must be a whole number of bytes, at least 1, not 0"),
        ({"shard_size": "5GB"}, "shard_size must be a whole number of bytes, at least 1, not '5GB'"),
        ({"allow_nonfinite": "no"}, "allow_nonfinite must be True or False, not 'no'"),
    ],
)
def test_a_wrong_option_of_the_output_is_refused_at_the_call(models, tmp_path, option, problem):
    base, a, b = models
    for checkpoint in (base + (a - base), wo.ties([a - base, b - base]).on(base)):
        with pytest.raises(wo.WeightopsError) as caught:
            checkpoint.save(tmp_path / "out", **option)
        assert caught.value.problems == (problem,)
        with pytest.raises(wo.WeightopsError):
            checkpoint.plan(**option)
    assert not (tmp_path / "out").exists()


def test_an_option_that_does_not_exist_is_refused_before_anything_is_written(models, tmp_path):
    base, a, b = models
    for checkpoint in (base + (a - base), wo.ties([a - base, b - base]).on(base)):
        with pytest.raises(TypeError, match="dtyp"):
            checkpoint.save(tmp_path / "out", dtyp="float16")
    assert not (tmp_path / "out").exists()


def test_what_an_adapter_replaces_whole_is_merged_too(models, tmp_path):
    # An adapter with modules_to_save gives a tensor of its own in place of the base's, and no low-rank update of it.
    base = models[0]
    name = "model.layers.0.mlp.up_proj.weight"
    whole = base.source.tensors[name]
    other = models[1].source.tensors[name]
    adapter = Adapter("adapter", tmp_path, {}, {name: other})
    merged = wo.ties([Delta((Change(adapter),))]).on(base)
    assert merged.tensor(name).equal(models[1].tensor(name))
    assert whole != other


def test_a_merge_without_a_base_says_how_to_save_it(models, tmp_path):
    base, a, b = models
    with pytest.raises(AttributeError, match=r"add it to its base first: \.on\(base\)\.save"):
        wo.ties([a - base, b - base]).save(tmp_path / "out")
