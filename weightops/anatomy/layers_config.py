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
    *("intermediate_size", "ffn_multipliers", "hybrid_override_pattern", "moe_layer_freq", "attn_layers"),
    *("activation_sparsity_pattern", "indexer_types", "layer_rope_theta", "num_attention_heads_per_layer"),
)
#: Keys with the numbers of layers that differ from the others.
NUMBERS_OF_LAYERS = (
    *("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "moe_layers"),
    *("cross_attention_layers", "full_attention_layers", "global_attn_idx", "rope_scaling_layers"),
)
#: Keys with a mapping from some layers' numbers to what is different there.
BY_LAYER = ("per_layer_config",)
#: For each layer, the number of the layer whose keys and values it reads; usually its own.
KV_SOURCES = "kv_source_layers"
#: Other keys that repeat the number of layers.
ALSO_COUNT = ("num_blocks", "num_hidden_layers")
#: Rules with a period or a limit: the keys that override the rule, and a function of a layer's number. Layers for
#: which it gives the same are alike.
BY_NUMBER: dict[str, tuple[tuple[str, ...], Callable[[int, Any, Mapping[str, Any]], object]]] = {
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
    "num_dense_layers": ((), lambda i, first, _: i < first),
    "block_types": ((), lambda i, cycle, _: cycle[i % len(cycle)]),
    "scale_attn_by_inverse_layer_idx": ((), lambda i, *_: i),
}
#: Models whose layers compute with their own number, which no key of the config tells, and what for.
COMPUTES_WITH_NUMBER = {
    "beam": "a layer reads sums of the layers before it by their numbers",
    "big_bird": "a layer draws its random blocks by its number",
    "diffllama": "a layer's lambda depends on its number",
}
#: The same with the number of all layers.
COMPUTES_WITH_COUNT = {
    "gpt_neox_japanese": "only its last layer has a bias",
    "minimax": "the decay of its linear attention depends on the number of layers",
}
#: Keys whose effect depends on the number of all layers.
SCALES_WITH_COUNT = {"scale_depth": "what each layer adds is divided by the square root of the number of layers"}
#: Models whose last layer transformers turns into one of full attention, whatever its config says.
ENDS_IN_FULL_ATTENTION = ("gemma4_text", "gemma4_unified_text")
#: Models whose layers share weights with each other.
SHARES_WEIGHTS = ("zamba", "zamba2")
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
    _refuse_counted(first, source_layers)
    written = [_write_out(config, source_layers) for config in configs]
    _refuse_broken(written, source_layers)
    new = {key: _moved(key, value, written, source_layers, count_key) for key, value in written[0].items()}
    new |= {key: len(source_layers) for key in (count_key, *ALSO_COUNT) if key in new and new[key] == old}
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
    for config in configs:
        if config.get("model_type") in SHARES_WEIGHTS:
            raise WeightopsError(f"config.json: layers of a {config['model_type']} cannot be moved: they share weights")
        if (sources := config.get(KV_SOURCES)) and not _own(sources):
            problem = "some layers reuse keys and values of earlier ones, so they cannot be moved"
            raise WeightopsError(f"config.json: by {KV_SOURCES} {problem}")


def _own(sources: object) -> bool:
    """Whether every layer reads its own keys and values."""
    return isinstance(sources, list) and sources == list(range(len(sources)))


def _refuse_counted(config: Mapping[str, Any], source_layers: Sequence[tuple[int, int]]) -> None:
    """Refuse models whose layers compute with their own number, or with the number of all layers."""
    model = str(config.get("model_type"))
    moved = [layer for _, layer in source_layers] != list(range(len(source_layers)))
    if moved and model in COMPUTES_WITH_NUMBER:
        raise WeightopsError(
            f"config.json: the layers of a {model} cannot get other numbers: {COMPUTES_WITH_NUMBER[model]}; keep the "
            "first layers"
        )
    reasons = [COMPUTES_WITH_COUNT.get(model), *(why for key, why in SCALES_WITH_COUNT.items() if config.get(key))]
    if why := next(filter(None, reasons), None):
        raise WeightopsError(f"config.json: the number of layers of a {model} cannot change: {why}")
    kinds, last = config.get("layer_types"), source_layers[-1][1] if source_layers else -1
    if model in ENDS_IN_FULL_ATTENTION and isinstance(kinds, list) and kinds[last : last + 1] != ["full_attention"]:
        full = ", ".join(str(layer) for layer, kind in enumerate(kinds) if kind == "full_attention")
        raise WeightopsError(
            f"config.json: the last layer of a {model} must be one of full attention; end with one of the layers {full}"
        )


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
        if not any(_is_rule(config.get(key)) for config in configs):
            continue
        if all(any(config.get(override) is not None for override in overrides) for config in configs):
            continue
        for out, (which, layer) in enumerate(source_layers):
            value, other_value = configs[0].get(key), configs[which].get(key)
            if (
                not _is_rule(value)
                or not _is_rule(other_value)
                or marks(out, value, configs[0]) != marks(layer, other_value, configs[which])
            ):
                problem = f"layer {layer} becomes layer {out}, which {key} = {value} treats differently"
                hint = f"; write {overrides[0]} into config.json first" if overrides else "; choose other layers"
                raise WeightopsError(f"config.json: {problem}{hint}")


def _is_rule(value: object) -> bool:
    return (isinstance(value, int) and value > 0) or (isinstance(value, list) and bool(value))


def _moved(
    key: str,
    value: Any,
    configs: Sequence[Mapping[str, Any]],
    source_layers: Sequence[tuple[int, int]],
    count_key: str,
) -> Any:
    lengths, numbered = [config.get(count_key) for config in configs], list(enumerate(source_layers))
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
        return [out for out, (which, layer) in numbered if layer in marked[which]]
    if key in BY_LAYER and isinstance(value, Mapping):
        given = [config.get(key) or {} for config in configs]
        picked = [(out, given[which].get(str(layer), given[which].get(layer))) for out, (which, layer) in numbered]
        return {str(out): entry for out, entry in picked if entry is not None}
    if key == KV_SOURCES and value:
        return list(range(len(source_layers)))
    return value
