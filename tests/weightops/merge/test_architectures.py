"""Merges of tiny models of many architectures: every weight is the formula's, and transformers loads what was written."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import tiny_architectures as architectures
import tiny_models as tiny
import torch
from merge_files import config_of, merge, ours, quiet

from weightops.errors import WeightopsError

ALL = list(architectures.FAMILIES)
#: Those that say something layer by layer, and some that do not.
SLICED = [
    "llama", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3-vision", "smollm3", "gpt2", "olmo2", "granite",
    "phi3", "mixtral", "qwen3_moe", "qwen2_vl", "qwen2_5_vl",
]  # fmt: skip
TIED = ["llama-tied", "gemma2", "gemma3", "gemma3-vision", "smollm3", "gpt2"]
TOKENS = torch.tensor([[1, 5, 9, 3, 7, 30, 12, 8, 21, 4, 6, 11]])  # longer than the sliding windows


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Three models of a family, made when they are first asked for."""

    @functools.cache
    def make(family: str) -> list[Path]:
        with quiet():
            return architectures.save(tmp_path_factory.mktemp(family), family, [0, 1, 2])

    return make


def loaded(folder: Path, family: str):
    """The model as transformers loads it, with not a key missing, left over or of another shape."""
    with quiet():
        model, report = architectures.load(folder, family)
    assert not any(report.values()), report
    return model


def text_of(config: dict) -> dict:
    return config.get("text_config", config)


def trimmed(deltas: torch.Tensor, density: float) -> torch.Tensor:
    """TIES by the paper, with weight 1: each task vector cut, the sign elected, the mean of those that agree."""
    kept = torch.zeros_like(deltas)
    for out, delta in zip(kept, deltas, strict=True):
        count = max(int(density * delta.numel()), 1)
        order = delta.abs().flatten().sort(descending=True, stable=True).indices[:count]
        out.view(-1)[order] = delta.flatten()[order]
    sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = kept * sign > 0
    return kept.where(agrees, 0).sum(0) / agrees.sum(0).clamp(min=1)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_the_mean_of_models_is_the_mean_of_each_weight_as_transformers_sees_it(parents, tmp_path, family):
    a, b, c = parents(family)
    text = (
        f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}, parameters: {{weight: 2}}}}, {{model: {c}}}]\n"
    )
    text += "parameters: {weight: 1}\n"
    written = ours(text, tmp_path / "out")
    assert set(written) == set(tiny.read(a))  # keys stay as they are in the files
    merged = dict(loaded(tmp_path / "out", family).named_parameters())
    first, second, third = (dict(loaded(folder, family).named_parameters()) for folder in (a, b, c))
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        true = (first[name].double() + 2 * second[name].double() + third[name].double()) / 4
        torch.testing.assert_close(value.double(), true, rtol=0, atol=2e-7)
    assert config_of(tmp_path / "out") == config_of(a)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_of_models_is_the_formula_on_each_weight_in_the_files(parents, tmp_path, family, dtype):
    base, a, b = parents(family)
    text = f"merge_method: ties\nbase_model: {base}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n"
    written = ours(f"{text}parameters: {{density: 0.4}}\ndtype: {dtype}\n", tmp_path / "out")
    of_base, *models = (tiny.read(folder) for folder in (base, a, b))
    assert set(written) == set(of_base)
    for name, value in written.items():
        start = of_base[name]
        true = start + trimmed(torch.stack([model[name] for model in models]) - start, 0.4)
        assert value.dtype == getattr(torch, dtype)
        step = torch.finfo(value.dtype).eps * true.abs().clamp(min=0.2)
        assert bool(((value.float() - true).abs() <= step).all()), name
    model = loaded(tmp_path / "out", family)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("family", TIED)
def test_a_tied_head_is_not_written(parents, tmp_path, family):
    a, b, _ = parents(family)
    written = ours(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\n", tmp_path / "out")
    assert not any("lm_head" in name for name in written)
    model = loaded(tmp_path / "out", family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_models_of_other_architectures_do_not_merge_and_nothing_is_written(parents, tmp_path):
    a, b = parents("qwen3")[0], parents("qwen2")[0]
    with pytest.raises(WeightopsError, match="must share one architecture"):
        ours(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}]\n", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.yml"]


# --- slices ----------------------------------------------------------------------------------------------------------


def stacked(tmp_path: Path, *layers: tuple[Path, int, int]) -> Path:
    """A passthrough of runs of layers: (model, first, end)."""
    lines = "".join(f"  - sources: [{{model: {m}, layer_range: [{first}, {end}]}}]\n" for m, first, end in layers)
    merge(f"merge_method: passthrough\nslices:\n{lines}", tmp_path / "out")
    return tmp_path / "out"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def final_norm(model):
    """The norm behind the last layer."""
    names = ("model.language_model.norm", "model.norm", "transformer.ln_f")
    return next(model.get_submodule(name) for name in names if name in dict(model.named_modules()))


def run_to(model, layer: int) -> torch.Tensor:
    """Hidden states behind a number of layers."""
    seen: list[torch.Tensor] = []
    handle = final_norm(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        states = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
    handle.remove()
    return seen[0] if layer == len(states) - 1 else states[layer]


@pytest.mark.parametrize("family", SLICED)
def test_a_model_stacked_from_its_own_layers_in_order_is_that_model(parents, tmp_path, family):
    parent = parents(family)[0]
    child = stacked(tmp_path, (parent, 0, 1), (parent, 1, 3), (parent, 3, 4))
    assert config_of(child) == config_of(parent)
    before, after = tiny.read(parent), tiny.read(child)
    assert before.keys() == after.keys()
    assert all(tiny.same_bytes(after[name], before[name]) for name in before)
    assert torch.equal(logits(loaded(child, family)), logits(loaded(parent, family)))


@pytest.mark.parametrize("family", SLICED)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_first_layers_give_the_hidden_states_that_the_parent_has_there(parents, tmp_path, family, depth):
    parent = parents(family)[0]
    child = loaded(stacked(tmp_path, (parent, 0, depth)), family)
    assert text_of(config_of(tmp_path / "out")).get("num_hidden_layers", depth) == depth
    assert torch.equal(run_to(child, depth), run_to(loaded(parent, family), depth))


@pytest.mark.parametrize("family", SLICED)
def test_layers_of_two_models_in_any_order_keep_their_weights_and_their_kind(parents, tmp_path, family):
    a, b, _ = parents(family)
    child = stacked(tmp_path, (a, 0, 2), (b, 1, 4), (a, 2, 3), (b, 3, 4))
    sources = [(a, 0), (a, 1), (b, 1), (b, 2), (b, 3), (a, 2), (b, 3)]
    loaded(child, family)
    written, before = tiny.read(child), {folder: tiny.read(folder) for folder in (a, b)}
    stack = next(part for part in ("model.layers.", "transformer.h.", "language_model.layers.") if _has(written, part))
    stack = next(name for name in written if stack in name).split(stack)[0] + stack
    checked = 0
    for out, (folder, layer) in enumerate(sources):
        for name, value in before[folder].items():
            if name.startswith(f"{stack}{layer}."):
                moved = written[f"{stack}{out}.{name.removeprefix(f'{stack}{layer}.')}"]
                assert tiny.same_bytes(moved, value)
                checked += 1
    outside = [name for name in written if not name.startswith(stack)]
    assert checked + len(outside) == len(written)
    old, new = text_of(config_of(a)), text_of(config_of(child))
    for key in ("layer_types", "no_rope_layers"):
        if old.get(key) is not None:
            assert new[key] == [old[key][layer] for _, layer in sources], key
    if "mlp_only_layers" in old:
        assert new["mlp_only_layers"] == [out for out, (_, layer) in enumerate(sources) if layer == 1]
    assert new.get("num_hidden_layers", new.get("n_layer")) == len(sources)


def _has(names, part: str) -> bool:
    return any(part in name for name in names)


def test_layers_beyond_the_model_are_refused(parents, tmp_path):
    parent = parents("qwen3")[0]
    with pytest.raises(WeightopsError, match=r"has 4 layers; layer_range \[2, 5\] goes beyond them"):
        stacked(tmp_path, (parent, 0, 2), (parent, 2, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["out.yml"]


# --- where mergekit is wrong -----------------------------------------------------------------------------------------


def theirs(text: str, out: Path) -> None:
    pytest.importorskip("mergekit.merge")
    import merge_files

    merge_files.theirs(text, out, clone_tensors=True)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "smollm3"])
def test_mergekit_cuts_these_models_wrong(parents, tmp_path, family):
    # Lists in the config with an entry a layer stay as long as they were: the model does not load, or computes other
    # numbers. The layers taken are such that the lists matter.
    parent = parents(family)[0]
    text = f"merge_method: passthrough\nslices: [{{sources: [{{model: {parent}, layer_range: [1, 4]}}]}}]\n"
    out = stacked(tmp_path, (parent, 1, 4))
    mine = loaded(out, family)
    key = "no_rope_layers" if family == "smollm3" else "layer_types"
    assert config_of(out)[key] == config_of(parent)[key][1:]
    try:
        theirs(text, tmp_path / "theirs")
        with quiet():
            other, report = architectures.load(tmp_path / "theirs", family)
        wrong = any(report.values()) or not torch.equal(logits(other), logits(mine))
    except Exception:
        wrong = True
    assert wrong
