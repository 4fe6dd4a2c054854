"""Every architecture of transformers' auto mappings, built without weights, with what its module tree says of each tensor."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: The auto mappings of transformers that are looked through; an architecture in several of them counts once.
MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
#: Config keys that are lowered, so that a model has a few layers only.
_DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_encoder_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers", "depth"),
)
_LAYERS = 3

COMPASS_ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
#: What a default config lacks to build a model.
NEEDED: dict[str, dict[str, Any]] = {
    "AyaVisionForConditionalGeneration": {"vision_config": {"hidden_size": 64, "num_attention_heads": 4}},
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 1}},
    "CohereCompassForCausalLM": {"rope_parameters": COMPASS_ROPE},
    "CohereCompassForConditionalGeneration": {"text_config": {"rope_parameters": COMPASS_ROPE}},
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 1e4}},
    "DeepseekOcr2ForConditionalGeneration": {"text_config": {"mlp_layer_types": ["dense"] * 64}},
    "DiffusionGemmaForBlockDiffusion": {
        "text_config": {"moe_intermediate_size": 64, "num_experts": 4, "top_k_experts": 2}
    },
    "Dots1ForCausalLM": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 64},
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 1, "<|extra_200|>": 2}},
    "EsmForMaskedLM": {"vocab_size": 33, "pad_token_id": 1},
    "Granite4VisionForConditionalGeneration": {"deepstack_layer_map": [[0, 1]], "downsample_rate": "1/2"},
    "Gemma4AssistantForCausalLM": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 128},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 128},
    "HunYuanVLForConditionalGeneration": {"text_config": {"head_dim": 128}},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 16},
    "MinistralForCausalLM": {"head_dim": 128},
    "NemotronForCausalLM": {"num_key_value_heads": 8, "head_dim": 128},
    "ReformerModelWithLMHead": {"is_decoder": True, "attn_layers": ["local", "lsh"] * 4},
}

_NORM = re.compile(r"(?<!RobertaPreLayer)Norm(?!alizer|ed)")
_ATTENTION = re.compile(r"Attention(?!.*(?:Layer|Block|Pooling|Merger|Model|Adapter))|Attn$")
_MLP = re.compile(r"(?:MLP|Mlp|FeedForward|FFN|Experts|MoE|MoeBlock|Router|Intermediate|DenseActDense|GatedActDense)$")
_LAYER = re.compile(r"(?:Layer|Block|Module|Group)$")
_IN_A_LAYER = re.compile(r"(?:Layer|Block|Attention)$")
_KINDS = {"vision": "vision", "video": "vision", "audio": "audio", "speech": "audio", "text": "text"}


@dataclass(frozen=True)
class TreeTensor:
    """A tensor, and what the module tree says of it.

    Attributes:
        names: What it is called in a file that ``save_pretrained`` writes; several where saving splits it.
        group: attention, mlp, norm, embedding or head, by the classes around it; ``None`` where they say nothing.
        layer: Its index in the outermost list of layers.
        is_head: Whether it is the weight of ``get_output_embeddings()``.
        is_embedding: Whether it is the weight of ``get_input_embeddings()``.
        kind: vision, audio or text, by the config of the model inside the model that it belongs to.
        tied: Whether it is the same parameter as another.
    """

    names: tuple[str, ...]
    group: str | None
    layer: int | None
    is_head: bool
    is_embedding: bool
    kind: str | None
    tied: bool

    @property
    def part(self) -> str | None:
        """The group as transformers itself sees it: its token embedding and its head first."""
        if self.is_embedding:
            return "embedding"
        return "head" if self.is_head else self.group


@dataclass(frozen=True)
class Tree:
    """An architecture: its tensors in the order that its modules are defined in, and its config."""

    tensors: tuple[TreeTensor, ...]
    config: Any


def architectures() -> dict[str, str]:
    """The name of every architecture, and the first mapping that lists it."""
    from transformers.models.auto import modeling_auto

    listed: dict[str, str] = {}
    for mapping, name in MAPPINGS.items():
        for entry in getattr(modeling_auto, name).values():
            for architecture in (entry,) if isinstance(entry, str) else entry[:1]:
                listed.setdefault(architecture, mapping)
    return listed


def tree_of(architecture: str) -> Tree:
    """Build an architecture on the meta device from its default config, with few layers."""
    import transformers

    model_class = getattr(transformers, architecture)
    try:
        config = _shallow(_config(model_class))
        model = _on_meta(model_class, config)
    except Exception:  # a config whose lists have an entry a layer: as deep as it is by default
        config = _config(model_class)
        model = _on_meta(model_class, config)
    return Tree(tuple(_tensors(model)), config)


def model_of(architecture: str, layers: int) -> Any:
    """An architecture on the meta device with that many text layers; as many as by default if it builds no such one."""
    import transformers

    from weightops.anatomy.config_keys import layer_count_key, text_part, text_path

    model_class = getattr(transformers, architecture)
    needed = copy.deepcopy(NEEDED.get(architecture, {}))
    default = model_class.config_class(**needed).to_dict()
    depth: dict[str, Any] = {str(layer_count_key(text_part(default))): layers}
    for key in reversed(text_path(default)):
        depth = {key: {**needed.get(key, {}), **depth}}
    try:
        return _on_meta(model_class, model_class.config_class(**{**needed, **depth}))
    except Exception:  # its lists have an entry a layer
        return _on_meta(model_class, _config(model_class))


def _config(model_class: Any) -> Any:
    return model_class.config_class(**copy.deepcopy(NEEDED.get(model_class.__name__, {})))


def _on_meta(model_class: Any, config: Any) -> Any:
    with torch.device("meta"):
        return model_class(config)


def _shallow(config: Any) -> Any:
    from transformers import PretrainedConfig

    for key in _DEPTHS:
        if isinstance(depth := vars(config).get(key), int) and depth > _LAYERS:
            setattr(config, key, _LAYERS)
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            _shallow(value)
    return config


def _tensors(model: Any) -> Iterator[TreeTensor]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    conversions = get_model_conversion_mapping(model, add_legacy=False)
    model._weight_conversions = [one for one in conversions if not isinstance(one, PrefixChange)] or None
    modules = dict(model.named_modules())
    state = model.state_dict(keep_vars=True)
    uses = [id(tensor) for tensor in state.values()]
    embedding, head = _ends(model)
    kinds = _kinds(model.config)
    for name, tensor in state.items():
        path = name.split(".")
        chain = [modules[".".join(path[:depth])] for depth in range(len(path))]
        names = _saved_as(model, name, tensor)
        kind = next((kinds[id(m.config)] for m in reversed(chain) if id(getattr(m, "config", None)) in kinds), None)
        yield TreeTensor(
            names,
            _group(chain),
            _layer(path, chain),
            chain[-1] is head and path[-1] == "weight",
            chain[-1] is embedding,
            kind,
            uses.count(id(tensor)) > 1,
        )


def _saved_as(model: Any, name: str, tensor: Any) -> tuple[str, ...]:
    """The names of a tensor in a file; its own where saving joins it with others, which are not given here."""
    from transformers.core_model_loading import revert_weight_conversion

    if model._weight_conversions is None:
        return (name,)
    try:
        return tuple(revert_weight_conversion(model, {name: tensor}))
    except ValueError:
        return (name,)


def _ends(model: Any) -> tuple[Any, Any]:
    """The modules that transformers takes for the token embedding and the head."""
    ends = []
    for get in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            ends.append(get())
        except (NotImplementedError, AttributeError):
            ends.append(None)
    return ends[0], ends[1]


def _kinds(config: Any) -> Mapping[int, str]:
    """What the configs inside a config are for, by identity."""
    from transformers import PretrainedConfig

    inner = {key: value for key, value in vars(config).items() if isinstance(value, PretrainedConfig)}
    words = {id(value): key.split("_")[0] for key, value in inner.items()}
    return {key: _KINDS[word] for key, word in words.items() if word in _KINDS}


def _group(chain: list[Any]) -> str | None:
    names = [type(module).__name__ for module in chain]
    if _NORM.search(names[-1]):
        return "norm"
    for name in reversed(names[1:]):
        if _ATTENTION.search(name):
            return "attention"
        if _MLP.search(name):
            return "mlp"
    return "embedding" if isinstance(chain[-1], torch.nn.Embedding) else None


def _layer(path: list[str], chain: list[Any]) -> int | None:
    """The index in the outermost list of layers: of modules that are called so, or hold what is called so."""
    for depth in range(1, len(chain)):
        if path[depth - 1].isdigit() and isinstance(chain[depth - 1], torch.nn.ModuleList):
            item = chain[depth]
            inner = (type(module).__name__ for module in item.modules() if module is not item)
            if _LAYER.search(type(item).__name__) or any(_IN_A_LAYER.search(name) for name in inner):
                return int(path[depth - 1])
    return None
