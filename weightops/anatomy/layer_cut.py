"""Which tensors a model keeps when layers are cut out of it, what they are called then, and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from ..errors import Message, Remedy, WeightopsError, short
from .config_keys import LAYER_COUNTS, layer_count, layer_count_key, text_part
from .layers import kind_of, layer_of, main_stack, stacks
from .layers_config import NUMBERS_OF_LAYERS, PER_LAYER, relayer_config

#: Endings of the class names of models that read the whole text at once.
_ENCODERS: Final = ("ForMaskedLM", "ForPreTraining")
_DECODERS: Final = ("ForCausalLM", "LMHeadModel", "LMHead", "Decoder", "ForConditionalGeneration")
#: Lists of numbers that have nothing to do with layers, however long they are.
_NOT_OF_LAYERS: Final = ("architectures", "eos_token_id", "bad_words_ids", "suppress_tokens")


@dataclass(frozen=True)
class LayerCut:
    """A model of some layers of another.

    Attributes:
        names: Every tensor that is kept: its name in the cut model, and in the whole one.
        config: ``config.json`` of the cut model.
        of: Layers of the whole model.
        notes: What the user should know.
    """

    names: Mapping[str, str]
    config: Mapping[str, Any]
    of: int
    notes: tuple[str, ...]


def cut_layers(names: Iterable[str], config: Mapping[str, Any], kept: Sequence[int] | int) -> LayerCut:
    """Keep some layers of a model, and everything that is in no layer of its text model.

    Args:
        names: Of the model's tensors.
        config: Its ``config.json``.
        kept: Numbers of the layers to keep, rising; or how many of the first ones.

    Raises:
        WeightopsError: the stack of layers is not recognised, it is an encoder's, it has layers that only fit the
            whole model, the config contradicts the tensors, or ``kept`` names layers that cannot be kept.

    >>> cut = cut_layers(["h.0.a", "h.1.a", "h.2.a", "ln_f.weight"], {"n_layer": 3}, [0, 2])
    >>> cut.names, cut.config
    ({'h.0.a': 'h.0.a', 'h.1.a': 'h.2.a', 'ln_f.weight': 'ln_f.weight'}, {'n_layer': 2})
    """
    names = tuple(names)
    stack = _text_stack(names, config)
    _refuse_encoders(config, stack)
    total = _agreed_count(names, config, stack)
    layers = _checked(kept, total)
    new = {layer: number for number, layer in enumerate(layers)}
    renamed: dict[str, str] = {}
    for name in names:
        place = layer_of(name)
        if place is None or place.stack != stack:
            renamed[name] = name
        elif place.index in new:
            renamed[place.at(new[place.index])] = name
    return LayerCut(renamed, relayer_config(config, layers), total, (*_unknown_lists(config, total), *_servers(config)))


def _refuse_encoders(config: Mapping[str, Any], stack: str) -> None:
    classes = config.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    if config.get("is_encoder_decoder") is True:
        raise WeightopsError(
            "config.json: is_encoder_decoder is set; only models that are a decoder alone are cut, because every layer "
            "of this one reads the whole encoder"
        )
    decodes = config.get("is_decoder") is True or any(name.endswith(_DECODERS) for name in names)
    if any(name.endswith(_ENCODERS) for name in names) or ("encoder" in stack.split(".") and not decodes):
        what = short(names[0]) if names else f"model with the layers {short(stack)}*"
        raise WeightopsError(
            f"config.json: a {what} is an encoder; only decoders are cut, whose head predicts the next token"
        )


def _text_stack(names: Sequence[str], config: Mapping[str, Any]) -> str:
    """The prefix of the layers to cut."""
    stack = main_stack(names, layer_count(config))
    if stack is not None and kind_of(stack) == "text":
        return stack
    lengths = {prefix: length for prefix, length in stacks(names).items() if kind_of(prefix) == "text"}
    seen = ", ".join(f"{short(prefix)}* ({length})" for prefix, length in sorted(lengths.items())) or "none"
    raise WeightopsError(
        "no stack of text layers is recognised: looked for one longest list of tensors named like layers.0., h.0., "
        f"block.0. or blocks.0.; the tensors have {seen}"
    )


def _agreed_count(names: Sequence[str], config: Mapping[str, Any], stack: str) -> int:
    """The number of layers, which tensors, config and its lists must agree on."""
    numbers = {place.index for name in names if (place := layer_of(name)) and place.stack == stack}
    told, stored = layer_count(config), stacks(names)[stack]
    key = layer_count_key(text_part(config))
    if told is None or key is None:
        raise WeightopsError(f"config.json: the number of layers is unknown; add one of {', '.join(LAYER_COUNTS)}")
    drafts = sorted(name for name in names if kind_of(name) == "draft")
    if drafts or stored > told:
        name = next(iter(drafts), f"{stack}{told}")
        raise WeightopsError(
            f"{short(name)}: belongs to a block that predicts further tokens (MTP) and only fits the whole model; "
            "remove its tensors first"
        )
    if stored < told or max(numbers) >= stored:
        gap = f"; layer {stored} is missing" if max(numbers) > stored else ""
        raise WeightopsError(
            f"config.json: {key} is {told}, but the weights hold {len(numbers)} layers ({short(stack)}*){gap}; restore "
            "the file"
        )
    for listed in ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers"):
        entries = text_part(config).get(listed)
        if isinstance(entries, list) and len(entries) != told:
            raise WeightopsError(
                f"config.json: {listed} has {len(entries)} entries for {told} layers; it must have one for each"
            )
    return told


def _checked(kept: Sequence[int] | int, total: int) -> list[int]:
    """The layers to keep, checked; each problem says what is allowed."""
    if isinstance(kept, int):
        if not 1 <= kept < total:
            problem = f"{kept} layers of {total} cannot be kept; a cut keeps 1 to {total - 1}"
            raise WeightopsError(Message(problem, Remedy("choose another number of {}", "layers")))
        return list(range(kept))
    layers = list(kept)
    if not layers:
        raise WeightopsError("no layer is kept; name at least one")
    if beyond := [layer for layer in layers if not 0 <= layer < total]:
        raise WeightopsError(f"layer {beyond[0]}: the model has {total} layers, numbered 0 to {total - 1}")
    if falling := [pair for pair in pairwise(layers) if pair[1] <= pair[0]]:
        one, two = falling[0]
        raise WeightopsError(f"layer {two} after layer {one}: the numbers must rise; name each layer once, in order")
    if len(layers) == total:
        raise WeightopsError(f"all {total} layers are kept, so nothing is cut; leave out at least one")
    return layers


def _unknown_lists(config: Mapping[str, Any], total: int) -> Iterable[str]:
    """Notes on lists that may have an entry for each layer; no architecture that we know has them."""
    for key, value in text_part(config).items():
        known = key in (*PER_LAYER, *NUMBERS_OF_LAYERS, *_NOT_OF_LAYERS)
        if isinstance(value, list) and len(value) == total and not known:
            yield (
                f"config.json: {short(key)} has {total} entries, as many as the model has layers, and is left as it "
                "is; check whether it belongs to layers"
            )


def _servers(config: Mapping[str, Any]) -> Iterable[str]:
    """A note on what llama.cpp gets wrong."""
    text = text_part(config)
    scale, size = text.get("query_pre_attn_scalar"), text.get("head_dim")
    if str(text.get("model_type")).startswith(("gemma2", "gemma3")) and scale and size and scale != size:
        yield (
            "llama.cpp derives the attention scale of Gemma 2 and 3 from the number of layers, and will take that of a "
            f"smaller model (head_dim {short(size)}, not query_pre_attn_scalar {short(scale)}): its answers will "
            "differ; transformers reads the config"
        )
