"""A config whose layers moved says of each layer what the config it came from said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from weightops.anatomy.layers_config import relayer_config, relayer_configs
from weightops.errors import WeightopsError

CONFIG = {
    "model_type": "x",
    "num_hidden_layers": 4,
    "layer_types": ["s", "f", "s", "g"],
    "no_rope_layers": [1, 1, 1, 0],
    "mlp_only_layers": [0, 3],
    "max_window_layers": 4,
    "num_key_value_heads": 2,
    "eos_token_id": [1, 2, 3, 4],
}

orders = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def test_by_hand():
    assert relayer_config(CONFIG, [0, 3, 3]) == {
        "model_type": "x",
        "num_hidden_layers": 3,
        "layer_types": ["s", "g", "g"],
        "no_rope_layers": [1, 0, 0],
        "mlp_only_layers": [0, 1, 2],
        "max_window_layers": 3,
        "num_key_value_heads": 2,
        "eos_token_id": [1, 2, 3, 4],
    }


@given(orders, st.data())
def test_moving_twice_is_moving_once(first, data):
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=8))
    once = relayer_config(CONFIG, [first[i] for i in second])
    twice = relayer_config(relayer_config(CONFIG, first), second)
    border = ("max_window_layers",)  # clamped, so the way there leaves a trace
    assert {k: v for k, v in twice.items() if k not in border} == {k: v for k, v in once.items() if k not in border}


def test_the_same_layers_leave_the_config_as_it_is():
    held = {**CONFIG, "num_nextn_predict_layers": 1}
    assert relayer_config(held, range(4)) == held


@given(orders)
def test_the_text_part_of_a_vision_language_model_is_the_one_that_moves(order):
    whole = {"text_config": CONFIG, "vision_config": {"num_hidden_layers": 4, "layer_types": list("abcd")}, "y": 1}
    assert relayer_config(whole, order) == {**whole, "text_config": relayer_config(CONFIG, order)}


def test_each_layer_brings_its_entry_from_its_own_model():
    other = {**CONFIG, "layer_types": ["A", "B", "C", "D"], "mlp_only_layers": [1]}
    new = relayer_configs([CONFIG, other], [(0, 0), (0, 1), (1, 1), (1, 3)])
    assert new["layer_types"] == ["s", "f", "B", "D"]
    assert new["mlp_only_layers"] == [0, 2]
    bare = {key: value for key, value in CONFIG.items() if key != "layer_types"}
    with pytest.raises(WeightopsError, match="layer_types has an entry for each layer in only some"):
        relayer_configs([CONFIG, bare], [(0, 0), (1, 1)])


@given(orders)
def test_a_period_becomes_the_list_that_transformers_makes_of_it(order):
    """Gemma 3 says its global layers by a period; after moving, each layer keeps the kind it had."""
    raw = {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2, "vocab_size": 8}
    before = AutoConfig.for_model(**raw).layer_types
    after = AutoConfig.for_model(**relayer_config(raw, order)).layer_types
    assert after == [before[i] for i in order]


@given(orders)
def test_a_border_becomes_the_list_that_transformers_makes_of_it(order):
    raw = {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8}
    raw["max_window_layers"] = 2
    before = AutoConfig.for_model(**raw).layer_types
    after = AutoConfig.for_model(**relayer_config(raw, order)).layer_types
    assert after == [before[i] for i in order]


@given(orders)
def test_smollm3_keeps_the_layers_without_rope(order):
    raw = {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2, "use_sliding_window": False}
    before = AutoConfig.for_model(**raw)
    after = AutoConfig.for_model(**relayer_config(raw, order))
    assert after.no_rope_layers == [before.no_rope_layers[i] for i in order]


@pytest.mark.parametrize(
    ("key", "value", "good", "bad"),
    [
        ("decoder_sparse_step", 2, [0, 1, 2], [0, 2]),
        ("first_k_dense_replace", 1, [0, 2, 3], [1, 2]),
        ("attn_layer_period", 2, [0, 3], [1, 2]),
    ],
)
def test_a_period_that_cannot_be_written_out_must_stay_true(key, value, good, bad):
    config = {"num_hidden_layers": 4, key: value}
    assert relayer_config(config, good) == {"num_hidden_layers": len(good), key: value}
    with pytest.raises(WeightopsError, match=f"which {key} = {value} treats differently"):
        relayer_config(config, bad)


@pytest.mark.parametrize("key", ["num_kv_shared_layers", "num_nextn_predict_layers", "mtp_num_hidden_layers"])
def test_layers_that_hang_together_are_not_moved(key):
    with pytest.raises(WeightopsError, match=key):
        relayer_config({"num_hidden_layers": 4, key: 1}, [0, 1])
    assert relayer_config({"num_hidden_layers": 4, key: 0}, [0, 1])["num_hidden_layers"] == 2


def test_a_config_without_a_count():
    with pytest.raises(WeightopsError, match="number of layers is unknown"):
        relayer_config({"hidden_size": 4}, [0])
    assert relayer_config({"n_layer": 4}, [0, 1]) == {"n_layer": 2}


@pytest.mark.parametrize("count", [10**12, 10**90])
def test_a_number_of_layers_that_no_model_has_is_refused_at_once(count):
    with pytest.raises(WeightopsError, match="num_hidden_layers is .*; it must be between 0 and 10000"):
        relayer_configs([{"num_hidden_layers": count, "sliding_window_pattern": 2}], [(0, 1), (0, 0)])
