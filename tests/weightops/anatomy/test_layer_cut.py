"""A cut keeps exactly the chosen layers, in order, and everything outside them; what cannot be cut is refused with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.anatomy.layer_cut import cut_layers
from weightops.errors import WeightopsError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 5}
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.vision.blocks.0.norm.weight"]
LAYERED = [f"model.layers.{layer}.{rest}" for layer in range(5) for rest in ("mlp.weight", "norm.weight")]
NAMES = [*OUTSIDE, *LAYERED]


@given(st.sets(st.integers(0, 4), min_size=1, max_size=4).map(sorted))
def test_each_kept_layer_keeps_its_tensors_under_its_new_number(kept):
    cut = cut_layers(NAMES, CONFIG, kept)
    expected = {name: name for name in OUTSIDE}
    for new, old in enumerate(kept):
        expected |= {
            f"model.layers.{new}.{rest}": f"model.layers.{old}.{rest}" for rest in ("mlp.weight", "norm.weight")
        }
    assert cut.names == expected
    assert cut.config == {**CONFIG, "num_hidden_layers": len(kept)}
    assert cut.of == 5


@given(st.integers(1, 4))
def test_a_number_of_layers_means_the_first_ones(count):
    assert cut_layers(NAMES, CONFIG, count) == cut_layers(NAMES, CONFIG, range(count))


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        (0, "0 layers of 5 cannot be kept; a cut keeps 1 to 4"),
        (5, "5 layers of 5 cannot be kept"),
        (10**30, "cannot be kept"),
        (-1, "cannot be kept"),
        ([], "no layer is kept"),
        ([0, 5], "layer 5: the model has 5 layers, numbered 0 to 4"),
        ([-1, 2], "layer -1: the model has 5 layers"),
        ([0, 3, 2], "layer 2 after layer 3: the numbers must rise"),
        ([1, 1], "layer 1 after layer 1"),
        (range(5), "all 5 layers are kept"),
    ],
)
def test_layers_that_cannot_be_kept(kept, problem):
    with pytest.raises(WeightopsError, match=problem):
        cut_layers(NAMES, CONFIG, kept)


@pytest.mark.parametrize(
    ("names", "changed", "problem"),
    [
        (OUTSIDE[:3], {}, "no stack of text layers is recognised: looked for .* the tensors have none"),
        (["a.layers.0.w", "b.layers.0.w"], {}, r"the tensors have a.layers.\* \(1\), b.layers.\* \(1\)"),
        (NAMES, {"num_hidden_layers": 6}, "is 6, but the weights hold 5 layers"),
        ([n for n in NAMES if ".2." not in n], {}, "hold 4 layers .*; layer 2 is missing"),
        (NAMES, {"num_hidden_layers": 4}, "model.layers.4: belongs to a block that predicts further tokens"),
        ([*NAMES, "mtp.layers.0.w"], {}, "mtp.layers.0.w: belongs to a block that predicts further tokens"),
        (NAMES, {"num_hidden_layers": None}, "number of layers is unknown"),
        (NAMES, {"layer_types": ["full_attention"] * 4}, "layer_types has 4 entries for 5 layers"),
        (NAMES, {"num_kv_shared_layers": 2}, "reuse keys and values"),
        (NAMES, {"kv_source_layers": [0, 1, 2, 2, 4]}, "reuse keys and values"),
        (NAMES, {"is_encoder_decoder": True}, "every layer of this one reads the whole encoder"),
        (NAMES, {"architectures": ["ModernBertForMaskedLM"]}, "a ModernBertForMaskedLM is an encoder"),
        ([n.replace("model.layers", "bert.encoder.layer") for n in NAMES], {"architectures": None}, "is an encoder"),
        (NAMES, {"model_type": "zamba"}, "share weights"),
    ],
)
def test_models_that_cannot_be_cut(names, changed, problem):
    with pytest.raises(WeightopsError, match=problem):
        cut_layers(names, {**CONFIG, **changed}, [0, 1])


def test_a_list_as_long_as_the_model_is_deep_is_told_if_nobody_knows_it():
    config = {**CONFIG, "my_list": [1] * 5, "eos_token_id": [1] * 5, "layer_types": ["full_attention"] * 5}
    (note,) = cut_layers(NAMES, config, 2).notes
    assert "my_list has 5 entries, as many as the model has layers" in note


@pytest.mark.parametrize(("scale", "told"), [(168, 1), (128, 0)])
def test_a_cut_gemma_27b_is_warned_about(scale, told):
    """llama.cpp knows a 27B by its 62 layers, and takes another attention scale for all others."""
    config = {**CONFIG, "model_type": "gemma3_text", "query_pre_attn_scalar": scale, "head_dim": 128}
    notes = cut_layers(NAMES, config, 2).notes
    assert len(notes) == told
    assert all("llama.cpp" in note for note in notes)


def test_entries_by_layer_number_move_with_their_layers():
    config = {
        **CONFIG,
        "per_layer_config": {"1": {"head_dim": 2}, "4": {"head_dim": 3}},
        "kv_source_layers": [*range(5)],
    }
    cut = cut_layers(NAMES, config, [0, 2, 4]).config
    assert cut["per_layer_config"] == {"2": {"head_dim": 3}}
    assert cut["kv_source_layers"] == [0, 1, 2]


def test_a_gemma_4_must_end_in_a_layer_of_full_attention():
    kinds = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
    config = {**CONFIG, "model_type": "gemma4_text", "layer_types": kinds}
    assert cut_layers(NAMES, config, 2).config["layer_types"] == kinds[:2]
    with pytest.raises(WeightopsError, match="must be one of full attention; end with one of the layers 1, 3, 4"):
        cut_layers(NAMES, config, 3)
