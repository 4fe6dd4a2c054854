"""Part by part is the whole model, bit for bit; one part's weights are in memory; what is no plain stack is refused."""

import json

import pytest
import tiny_architectures
import tiny_models
import torch
from fuzzing import peak_memory
from safetensors.torch import load_file, save_file

import weightops as wo
from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.layerwise.layered_model import LayeredModel

IDS = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12)


def run_in_parts(model, ids=IDS):
    hidden = None
    with torch.no_grad():
        for number in range(model.parts):
            with model.part(number) as part:
                hidden = part.run(ids, hidden)
    return hidden


def whole(model, ids=IDS):
    if any("experts" in name for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize(
    "family",
    ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3-vision", "phi3", "smollm3",
     "granite", "gpt2", "mixtral", "qwen3_moe"],
)  # fmt: skip
def test_part_by_part_is_the_whole_model_bit_for_bit_and_every_tensor_keeps_its_name(family, tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, family, [0])
    wanted = whole(tiny_architectures.load(folder, family)[0])
    model = LayeredModel(folder)
    assert torch.equal(run_in_parts(model), wanted)
    stored = wo.open(folder)
    for number in range(model.parts - model.tied):
        with model.part(number) as part:
            named = model.as_stored(number, part.parameters)
            assert set(named) == set(model.stored_names(number))
            assert all(torch.equal(tensor, stored.tensor(name)) for name, tensor in named.items())


def test_linear_attention_beside_softmax_attention_is_the_whole_model(tmp_path):
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **tiny_architectures.TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"] * 2,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3NextForCausalLM(config).save_pretrained(tmp_path / "model")
    model = Qwen3NextForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    wanted = whole(model)
    assert torch.equal(run_in_parts(LayeredModel(tmp_path / "model")), wanted)


def test_an_adapter_on_a_base_runs_as_the_two_loaded_together(tmp_path):
    base = tiny_models.transformer(tmp_path / "base", "llama", tied=True)
    names = [f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")]
    adapter = tiny_models.lora(tmp_path / "adapter", load_file(base / "model.safetensors"), names, seed=1)
    wanted = whole(load(f"{base}+{adapter}", "float32")[0])
    assert torch.equal(run_in_parts(LayeredModel(f"{base}+{adapter}")), wanted)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_between_parts_no_weights_are_in_memory_and_within_one_only_its_own(family, tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, family, [0])
    model = LayeredModel(folder)

    def held():
        return {
            name for name, p in model.model.named_parameters() if not p.is_meta and p.untyped_storage().nbytes() > 4
        }

    assert held() == set()
    for number in range(model.parts):
        with model.part(number) as part:
            assert held() == {*part.parameters, *part.tied}
            assert set(part.parameters) == set(model.stored_names(number))
        assert held() == set()
    assert held() == set()


def test_peak_memory_grows_with_one_layer_and_not_with_the_depth(tmp_path):
    def model(layers):
        shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers}
        (folder,) = tiny_architectures.save(tmp_path / str(layers), "llama", [0], **shape)
        return LayeredModel(folder)

    shallow, deep = model(1), model(6)
    layer = shallow.part_bytes(1)
    run_in_parts(shallow)
    peaks = [peak_memory(lambda model=model: run_in_parts(model)) for model in (shallow, deep)]
    assert layer > 10e6
    assert peaks[1] < peaks[0] + layer < 6 * layer


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RoFormer", "layer 0 reads more than the hidden states"),
        ("Zamba2", "layer 0 reads more than the hidden states"),
    ],
)
def test_what_is_no_plain_stack_is_refused_by_name_before_weights_are_read(name, reason, tmp_path, monkeypatch):
    import transformers

    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "is_decoder": True} if name == "RoFormer" else {
        "attention_head_dim": 8, "num_attention_heads": 4, "hybrid_layer_ids": [1], "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 4, "n_mamba_heads": 4, "mamba_headdim": 8, "adapter_rank": 4,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**shape)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(tmp_path)
    monkeypatch.setattr("weightops.algebra.checkpoint.Checkpoint.tensor", None)
    with pytest.raises(WeightopsError, match=f"{name}ForCausalLM cannot be run layer by layer: {reason}"):
        LayeredModel(tmp_path)


def test_a_layer_whose_output_is_nan_is_named_with_its_model(tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, "llama", [0])
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][:] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightopsError, match="0: the output of layer 2 is not finite"):
        run_in_parts(LayeredModel(folder))


def test_a_missing_tensor_and_one_of_another_shape_are_named(tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, "llama", [0])
    tensors = load_file(folder / "model.safetensors")
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightopsError, match=r"has no model\.layers\.1\.mlp\.up_proj\.weight"):
        run_in_parts(LayeredModel(folder))
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": gone[:-1]}, folder / "model.safetensors")
    with pytest.raises(WeightopsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has another shape"):
        run_in_parts(LayeredModel(folder))


def test_a_config_that_transformers_does_not_know_is_an_error(tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, "llama", [0])
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(WeightopsError, match="transformers cannot load it"):
        LayeredModel(folder)
