"""A model's ``config.json`` after its layers were cut, repeated or put in another order.

Lists with an entry for each layer follow their layers, lists of layer numbers get the new numbers, and a rule such as
"every sixth layer is global" is written out as a list, or refused where the new order breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import WeightopsError, short
from .config_keys import LAYER_COUNTS, layer_count_key, text_part, text_path, with_text_part

#: One entry a layer. Some models give one number for all layers under the same key; that stays as it is.
PER_LAYER = (
    *("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "attn_type_list", "attention_layers"),
    *("block_configs", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "num_query_heads"),
    *("intermediate_size", "ffn_multipliers", "hybrid_override_pattern", "moe_layer_freq"),
)
#: Numbers of the layers that differ from the rest.
NUMBERS_OF_LAYERS = (
    *("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "moe_layers"),
    *("cross_attention_layers", "full_attention_layers", "global_attn_idx"),
)
#: Settings by a period or a border, and the layers they mark; each with the list that, where present, overrides it.
BY_NUMBER: dict[str, tuple[tuple[str, ...], Callable[[int, Any, Mapping[str, Any]], bool]]] = {
    "sliding_window_pattern": (("layer_types",), lambda i, every, _: (i + 1) % every == 0),
    "full_attention_interval": (("layer_types",), lambda i, every, _: (i + 1) % every == 0),
    "global_attn_every_n_layers": (("layer_types",), lambda i, every, _: i % every == 0),
    "no_rope_layer_interval": (("no_rope_layers",), lambda i, every, _: (i + 1) % every == 0),
    "interleave_moe_layer_step": (("moe_layers",), lambda i, every, _: (i + 1) % every == 0),
    "decoder_sparse_step": ((), lambda i, every, _: (i + 1) % every == 0),
    "first_k_dense_replace": (("mlp_layer_types",), lambda i, first, _: i < first),
    "attn_layer_period": ((), lambda i, every, c: i % every == c.get("attn_layer_offset", 0)),
    "expert_layer_period": ((), lambda i, every, c: i % every == c.get("expert_layer_offset", 0)),
    "cross_attention_interval": ((), lambda i, every, _: (i + 1) % every == 0),
}
#: Periods that transformers also reads as a list: its key, the entry of every n-th layer, the entry of the others.
AS_LIST = {
    "sliding_window_pattern": ("layer_types", "full_attention", "sliding_attention"),
    "full_attention_interval": ("layer_types", "full_attention", "linear_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0, 1),
}


#: Layers that a configuration may claim; lists of that length are made.
MOST_LAYERS = 10_000


def relayer_config(config: Mapping[str, Any], source_layers: Sequence[int]) -> dict[str, Any]:
    """The config of a model made of another's layers.

    Args:
        config: ``config.json`` of that model; of a vision-language model the text part inside it is changed.
        source_layers: For each layer of the output, which layer it was.

    Raises:
        WeightopsError: the config says something by layer number that the new order breaks, or the model shares keys
            and values across layers, or has a block that predicts further tokens.

    >>> relayer_config({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}, [0, 2])
    {'num_hidden_layers': 2, 'layer_types': ['a', 'c']}
    """
    return relayer_configs([config], [(0, layer) for layer in source_layers])


def relayer_configs(configs: Sequence[Mapping[str, Any]], source_layers: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The config of a model stacked from the layers of several.

    Args:
        configs: Their ``config.json``; the first gives everything that does not belong to one layer.
        source_layers: For each layer of the output, (which config, which layer).

    Raises:
        WeightopsError: as :func:`relayer_config`; also two configs of different forms.
    """
    path = text_path(configs[0])
    if not path or layer_count_key(text_part(configs[0])) is None:
        return _relayer(configs, source_layers)
    if any(text_path(config) != path for config in configs):
        where = ".".join(path)
        raise WeightopsError(f"config.json: only some of the stacked models have {where}; stack models of one kind")
    return with_text_part(configs[0], _relayer([text_part(config) for config in configs], source_layers))


def _relayer(configs: Sequence[Mapping[str, Any]], source_layers: Sequence[tuple[int, int]]) -> dict[str, Any]:
    first, count_key = configs[0], layer_count_key(configs[0])
    if count_key is None:
        keys = ", ".join(LAYER_COUNTS)
        raise WeightopsError(f"config.json: the number of layers is unknown; add one of the keys {keys}")
    for config in configs:
        count = config.get(count_key, 0)
        if not isinstance(count, int) or not 0 <= count <= MOST_LAYERS:
            raise WeightopsError(f"config.json: {count_key} is {short(count)}; it must lie between 0 and {MOST_LAYERS}")
    old = int(first[count_key])
    if list(source_layers) == [(0, layer) for layer in range(old)]:
        return dict(first)
    _refuse_shared(configs)
    written = [_write_out(config, source_layers) for config in configs]
    _refuse_broken(written, source_layers)
    new = {key: _moved(key, value, written, source_layers, count_key) for key, value in written[0].items()}
    new[count_key] = len(source_layers)
    if isinstance(new.get("max_window_layers"), int):
        new["max_window_layers"] = min(new["max_window_layers"], len(source_layers))
    return new


def _refuse_shared(configs: Sequence[Mapping[str, Any]]) -> None:
    for key, what in (
        ("num_kv_shared_layers", "its last layers reuse keys and values of earlier ones"),
        ("num_nextn_predict_layers", "it has a block that predicts further tokens from its last layer"),
        ("mtp_num_hidden_layers", "it has a block that predicts further tokens from its last layer"),
    ):
        if any(config.get(key) for config in configs):
            raise WeightopsError(f"config.json: {key}: layers of this model cannot be moved, as {what}")


def _write_out(config: Mapping[str, Any], source_layers: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Name each layer's kind where the config only gives a period or a border, and layers no longer run in order."""
    count_key = layer_count_key(config)
    if count_key is None or [layer for _, layer in source_layers] == list(range(len(source_layers))):
        return dict(config)
    numbers, new = range(int(config[count_key])), dict(config)
    for key, (listed, nth, others) in AS_LIST.items():
        every = config.get(key)
        if isinstance(every, int) and every > 0 and new.get(listed) is None:
            new[listed] = [others if (i + 1) % every else nth for i in numbers]
    border = config.get("max_window_layers")
    if isinstance(border, int) and config.get("use_sliding_window") and new.get("layer_types") is None:
        new["layer_types"] = ["sliding_attention" if i >= border else "full_attention" for i in numbers]
    return new


def _refuse_broken(configs: Sequence[Mapping[str, Any]], source_layers: Sequence[tuple[int, int]]) -> None:
    """A period stays true only while every layer lands on a number that the period treats alike."""
    for key, (overrides, marks) in BY_NUMBER.items():
        if not any(isinstance(config.get(key), int) and config[key] > 0 for config in configs):
            continue
        if all(any(config.get(other) is not None for other in overrides) for config in configs):
            continue
        for out, (which, layer) in enumerate(source_layers):
            here, there = configs[0].get(key), configs[which].get(key)
            if not here or not there or marks(out, here, configs[0]) != marks(layer, there, configs[which]):
                said = f"layer {layer} becomes layer {out}, which {key} = {here} treats differently"
                hint = f"; write {overrides[0]} into config.json first" if overrides else "; choose other layers"
                raise WeightopsError(f"config.json: {said}{hint}")


def _moved(
    key: str,
    value: Any,
    configs: Sequence[Mapping[str, Any]],
    source_layers: Sequence[tuple[int, int]],
    count_key: str,
) -> Any:
    lengths = [config.get(count_key) for config in configs]
    if key in PER_LAYER and isinstance(value, (list, str)) and len(value) == lengths[0]:
        lists = [config.get(key) for config in configs]
        if not all(isinstance(one, type(value)) and len(one) == n for one, n in zip(lists, lengths, strict=True)):
            raise WeightopsError(f"config.json: {key} has an entry for each layer only in some of the stacked models")
        picked = [lists[which][layer] for which, layer in source_layers]  # type: ignore[index]
        return "".join(picked) if isinstance(value, str) else picked
    if key in NUMBERS_OF_LAYERS and isinstance(value, list):
        marked = [set(config.get(key) or ()) for config in configs]
        return [out for out, (which, layer) in enumerate(source_layers) if layer in marked[which]]
    return value
