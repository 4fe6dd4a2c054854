"""Whatever a user names becomes a checkpoint, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from weightops.algebra.checkpoint import Delta
from weightops.algebra.opening import open_all
from weightops.errors import WeightopsError


@pytest.fixture
def tensors() -> tiny.Tensors:
    return tiny.llama(0)


def holds(model: wo.Checkpoint, tensors: tiny.Tensors) -> bool:
    """Whether a checkpoint has just these tensors, to the bit."""
    return set(model.names) == set(tensors) and all(tiny.same_bytes(model.tensor(n), t) for n, t in tensors.items())


def test_folder_shards_file_and_pickle_are_the_same_model(tensors, tmp_path):
    whole, split = tiny.write(tmp_path / "whole", tensors), tiny.write(tmp_path / "split", tensors, shards=3)
    torch.save(tensors, tmp_path / "x.bin")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    torch.save(tensors, pickled / "pytorch_model.bin")
    for spec in (whole, split, whole / "model.safetensors", tmp_path / "x.bin", pickled):
        assert holds(wo.open(spec), tensors), spec


def test_safetensors_go_before_pickles_in_one_folder(tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors)
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert holds(wo.open(folder), tensors)


def test_a_path_may_be_relative_or_begin_at_home(tensors, tmp_path, monkeypatch):
    tiny.write(tmp_path / "m", tensors)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in ("m", "./m", "~/m", Path("m"), "m/../m"):
        assert set(wo.open(spec).names) == set(tensors)


def test_a_folder_goes_before_a_hub_id_of_the_same_name(tensors, tmp_path, monkeypatch):
    tiny.write(tmp_path / "org/name", tensors)
    monkeypatch.chdir(tmp_path)
    source = wo.open("org/name").source
    assert (source.spec, source.revision) == ("org/name", None)


def test_the_config_comes_with_a_folder_and_not_with_a_file(tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors, config={"model_type": "x"})
    assert wo.open(folder).source.config == {"model_type": "x"}
    assert wo.open(folder / "model.safetensors").source.config == {}
    assert wo.open(folder / "model.safetensors").source.folder is None


def lora(folder: Path, **config: object) -> Path:
    """A LoRA folder of ones on one matrix."""
    return tiny.lora_of_ones(folder, "model.layers.0.self_attn.q_proj", (16, 16), **config)


def test_base_plus_adapter_is_the_base_with_the_adapters_delta(tensors, tmp_path):
    base, adapter = tiny.write(tmp_path / "m", tensors), lora(tmp_path / "lora")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = tensors | {name: (tensors[name].float() + 1).bfloat16()}
    assert holds(wo.open(f"{base}+{adapter}"), expected)
    assert holds(wo.open(base) + wo.open_adapter(adapter), expected)
    assert wo.open_adapter(adapter).names == {name}


def test_a_folder_with_a_plus_in_its_name_is_a_folder(tensors, tmp_path):
    folder = tiny.write(tmp_path / "a+b", tensors)
    assert holds(wo.open(folder), tensors)
    with pytest.raises(WeightopsError, match="a: no such file or folder"):
        wo.open(tmp_path / "a+c")


def test_a_folder_with_weights_and_an_adapter_config_is_a_model(tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors)
    (folder / "adapter_config.json").write_text("{}")
    assert holds(wo.open(folder), tensors)


def test_the_same_name_twice_is_one_source_so_that_a_minus_a_is_nothing(tensors, tmp_path):
    folder, other = tiny.write(tmp_path / "m", tensors), tiny.write(tmp_path / "n", tensors)
    a, b, c = open_all([folder, other, folder])
    assert a.source is c.source
    assert a - c == Delta()
    assert (a - b).names == frozenset(tensors)


def test_all_that_cannot_be_opened_are_named_together(tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors)
    with pytest.raises(WeightopsError) as caught:
        open_all([tmp_path / "x", folder, tmp_path / "y"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == [str(tmp_path / "x"), str(tmp_path / "y")]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised weights (bitsandbytes, says config.json)"),
        ({"bits": 4}, "quantised weights (unknown, says config.json)"),
        ("int4", "quantised weights (unknown, says config.json)"),
    ],
)
def test_weights_that_their_config_calls_quantised_are_refused(config, says, tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors, config={"quantization_config": config})
    with pytest.raises(WeightopsError) as caught:
        wo.open(folder)
    assert says in str(caught.value)
    assert "dequantise first" in str(caught.value)


def test_names_that_only_look_packed_are_not(tmp_path):
    names = ["model.scales.weight", "model.g_idx_proj.weight", "model.layers.0.scale", "absmax"]
    assert set(wo.open(tiny.write(tmp_path / "m", {n: torch.ones(2) for n in names})).names) == set(names)


def test_several_gguf_files_in_a_folder_are_to_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(WeightopsError, match=rf"2 GGUF files; name one of them, for example {tmp_path}/a.gguf"):
        wo.open(tmp_path)


def test_opening_reads_the_header_and_leaves_the_data(tensors, tmp_path):
    folder = tiny.write(tmp_path / "m", tensors)
    weights = wo.open(folder).source
    (file,) = weights.files
    assert {t.name: (t.shape, t.dtype) for t in weights.tensors.values()} == {
        n: (tuple(t.shape), "BF16") for n, t in tensors.items()
    }
    with file.open("r+b") as stream:
        stream.seek(weights.tensors["lm_head.weight"].offset)
        stream.write(b"\1\2")
    assert wo.open(folder).tensor("lm_head.weight").view(torch.uint8).flatten()[:2].tolist() == [1, 2]


def test_what_the_package_offers_is_found_and_nothing_else():
    for name in wo.__all__:
        assert getattr(wo, name) is not None
    with pytest.raises(AttributeError, match="module 'weightops' has no attribute 'nothing'"):
        wo.nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'tise' \(did you mean 'ties'\?\)"):
        _ = wo.tise


@pytest.mark.slow
def test_the_alias_is_the_real_model_in_bf16():
    model = wo.open("smollm2-135m-instruct")
    assert model.source.config["model_type"] == "llama"
    assert sum(t.count for t in model.source.tensors.values()) == 134_515_008
    assert {t.dtype for t in model.source.tensors.values()} == {"BF16"}
