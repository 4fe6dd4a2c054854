"""Adapts a model's ``config.json`` when its layers are cut, repeated or reordered.

Lists with one entry for each layer are reordered like the layers, and lists of layer numbers get the new numbers. A
rule such as "every sixth layer is global" is written as a list, or refused if the new order breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import WeightopsError, short
from .config_keys import LAYER_COUNTS, layer_count_key, text_part, text_path, with_text_part

#: Keys with one entry for each layer. Some models have a single number under the same key; that is not changed.
PER_LAYER = (
    *("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "attn_type_list", "attention_layers"),
    *("block_configs", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "num_query_heads"),
    *("intermediate_size", "ffn_multipliers", "hybrid_override_pattern", "moe_layer_freq"),
)
#: Keys with the numbers of layers that differ from the others.
NUMBERS_OF_LAYERS = (
    *("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "moe_layers"),
    *("cross_attention_layers", "full_attention_layers", "global_attn_idx"),
)
#: Rules with a period or a limit: the keys that override the rule, and a function that tells the layers it marks.
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
#: Periods with an equivalent list in transformers: the list's key, its entry for every n-th layer, and for the others.
AS_LIST = {
    "sliding_window_pattern": ("layer_types", "full_attention", "sliding_attention"),
    "full_attention_interval": ("layer_types", "full_attention", "linear_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0, 1),
}


#: Most layers of a config; weightops builds lists of that length.
MOST_LAYERS = 10_000


def relayer_config(config: Mapping[str, Any], source_layers: Sequence[int]) -> dict[str, Any]:
    """The config of a model made of the layers of another model.

    Args:
        config: ``config.json`` of the other model; only its text part is changed.
        source_layers: For each layer of the output, its number in the other model.

    Raises:
        WeightopsError: the new order breaks a rule of the config, the model shares keys and values across layers,
            or it has a block that predicts further tokens.

    >>> relayer_config({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}, [0, 2])
    {'num_hidden_layers': 2, 'layer_types': ['a', 'c']}
    """
    return relayer_configs([config], [(0, layer) for layer in source_layers])


def relayer_configs(configs: Sequence[Mapping[str, Any]], source_layers: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The config of a model stacked from the layers of several models.

    Args:
        configs: Their ``config.json``; the first one gives everything that does not belong to a layer.
        source_layers: For each layer of the output, (index of the config, number of the layer).

    Raises:
        WeightopsError: as for :func:`relayer_config`; also if the configs have different forms.
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
            raise WeightopsError(f"config.json: {count_key} is {short(count)}; it must be between 0 and {MOST_LAYERS}")
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
            raise WeightopsError(f"config.json: {key} is set, so layers of this model cannot be moved: {what}")


def _write_out(config: Mapping[str, Any], source_layers: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Replace a period or a limit by a list of each layer's kind, if the layers are no longer in order."""
    count_key = layer_count_key(config)
    if count_key is None or [layer for _, layer in source_layers] == list(range(len(source_layers))):
        return dict(config)
    numbers, new = range(int(config[count_key])), dict(config)
    for key, (listed, nth, other) in AS_LIST.items():
        every = config.get(key)
        if isinstance(every, int) and every > 0 and new.get(listed) is None:
            new[listed] = [other if (i + 1) % every else nth for i in numbers]
    limit = config.get("max_window_layers")
    if isinstance(limit, int) and config.get("use_sliding_window") and new.get("layer_types") is None:
        new["layer_types"] = ["sliding_attention" if i >= limit else "full_attention" for i in numbers]
    return new


def _refuse_broken(configs: Sequence[Mapping[str, Any]], source_layers: Sequence[tuple[int, int]]) -> None:
    """Refuse an order that breaks a rule: every layer must get a number that the rule treats like its old number."""
    for key, (overrides, marks) in BY_NUMBER.items():
        if not any(isinstance(config.get(key), int) and config[key] > 0 for config in configs):
            continue
        if all(any(config.get(override) is not None for override in overrides) for config in configs):
            continue
        for out, (which, layer) in enumerate(source_layers):
            value, other_value = configs[0].get(key), configs[which].get(key)
            if (
                not value
                or not other_value
                or marks(out, value, configs[0]) != marks(layer, other_value, configs[which])
            ):
                problem = f"layer {layer} becomes layer {out}, which {key} = {value} treats differently"
                hint = f"; write {overrides[0]} into config.json first" if overrides else "; choose other layers"
                raise WeightopsError(f"config.json: {problem}{hint}")


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
        if not all(
            isinstance(entries, type(value)) and len(entries) == n for entries, n in zip(lists, lengths, strict=True)
        ):
            raise WeightopsError(
                f"config.json: {key} has an entry for each layer in only some of the models; stack models of one kind"
            )
        picked = [lists[which][layer] for which, layer in source_layers]  # type: ignore[index]
        return "".join(picked) if isinstance(value, str) else picked
    if key in NUMBERS_OF_LAYERS and isinstance(value, list):
        marked = [set(config.get(key) or ()) for config in configs]
        return [out for out, (which, layer) in enumerate(source_layers) if layer in marked[which]]
    return value
