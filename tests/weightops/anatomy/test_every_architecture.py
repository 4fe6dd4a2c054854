"""What names tell, against the module tree of every architecture that transformers' auto mappings list.

A new architecture needs no code: it is built and checked by itself. Where its names cannot tell what its modules are,
it gets a row in ``AMBIGUOUS``; where its default config builds no model, the missing keys go into ``NEEDED`` of
``auto_architectures``; where it cannot be built at all, it gets a row in ``NOT_BUILT``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from auto_architectures import Tree, TreeTensor, architectures, tree_of

from weightops.anatomy.config_keys import layer_count, max_positions, text_part, ties_embeddings, vocabulary_size
from weightops.anatomy.groups import before_layers, embedding_of, group_of, is_head
from weightops.anatomy.layers import kind_of, layer_of

#: Architecture to the reason why it cannot be built.
NOT_BUILT = dict.fromkeys(
    ("FastVlmForConditionalGeneration", "Gemma3nForConditionalGeneration", "PerceptionLMForConditionalGeneration"),
    "its vision tower is a timm model, and timm is no dependency",
) | dict.fromkeys(
    ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
    "its default config contradicts itself; the layers are those of Gemma4ForCausalLM",
)

_NUMBERED = "a module in a Sequential has a number for a name"
_CODEC = "an image or sound codec of convolutions, which no layer_range counts in"
_TABLE = "a table of relative positions is an Embedding in the tree; by its use it belongs to attention"
_UNSAID = "its name says neither what it is nor what it is part of"
_OTHER_HEAD = "a head of this name, for another vocabulary than the one of the text"
_VISION = "a vision encoder whose name could be a text encoder's"
_LATE = "defined after the layers, used before them"
_EARLY = "defined before the layers, used after them"
_START = "values that the first layer starts from, without a word for that in their names"
_LIST = "its config gives a list with an entry a layer and no number"

_Rows = tuple[tuple[str, str, str], ...]
_BART: _Rows = (("order", r"layernorm_embedding|embeddings_layer_norm", _LATE),)
_PER_LAYER: _Rows = (("order", r"embed_tokens_per_layer", _LATE),)
_RESIDUAL: _Rows = (
    ("layer", r"attn_res\.\w+_queries\.", "one list for all layers, beside them"),
    ("group", r"attn_res\.mlp_queries", "attention over the outputs of the feed-forward blocks"),
)
_NECK: _Rows = (("group", r"sam_model\.neck\.\d", _NUMBERED),)

#: Architecture to rows of (law, pattern of the names, why the names cannot tell).
AMBIGUOUS: dict[str, _Rows] = {
    "AXK2ForCausalLM": (
        ("group", r"layernorm\.W_(?:up|down)", "a feed-forward gate inside a norm goes with the norm"),
    ),
    "BartForCausalLM": _BART,
    "BigBirdPegasusForCausalLM": _BART,
    "BlenderbotSmallForCausalLM": _BART,
    "BlenderbotForCausalLM": (
        ("sizes", "num_hidden_layers", "transformers gives the encoder's, the text is the decoder's"),
    ),
    "BltForCausalLM": (
        ("head", r"patcher\.lm_head", "the head of a small model inside it that cuts text into patches"),
        ("order", r"embed", _LATE),
    ),
    "ChameleonForConditionalGeneration": (("layer", r"vqmodel\.", _CODEC),),
    "Cosmos3OmniForConditionalGeneration": (("kind", r"^(?:blocks|pos_embed)\.", _VISION),),
    "CpmAntForCausalLM": (("order", r"embedding|position_bias", _LATE),),
    "DeepseekOcr2ForConditionalGeneration": (
        *_NECK,
        ("kind", r"qwen2_model\.", "a language model as the encoder of images"),
        ("group", r"query_\d+", _UNSAID),
    ),
    "Dots3NoteForConditionalGeneration": (("group", r"audio_adapter\.proj\.\d", _NUMBERED),),
    "Emu3ForConditionalGeneration": (("layer", r"vqmodel\.", _CODEC),),
    "Ernie4_5_VLMoeForConditionalGeneration": (("group", r"(?:spatial|temporal)_linear\.\d", _NUMBERED),),
    "EvollaForProteinText2Text": (("group", r"adapter\.(?:gate_ffw|out_proj)", _UNSAID),),
    "FSMTForConditionalGeneration": (
        (
            "group",
            r"decoder\.embed_tokens",
            "transformers names the decoder's embedding as the head that it is tied to",
        ),
        ("head", r"decoder\.(?:embed_tokens|output_projection)", "the same"),
    ),
    "FunnelForMaskedLM": (("sizes", "num_hidden_layers", "block_sizes counts the layers, in blocks"),),
    "Gemma3nForCausalLM": _PER_LAYER,
    "Gemma4ForCausalLM": _PER_LAYER,
    "Gemma4ForConditionalGeneration": _PER_LAYER,
    "GitForCausalLM": (("group", r"visual_projection\.\d", _NUMBERED),),
    "Granite4VisionForConditionalGeneration": (
        ("layer", r"projectors\.\d", "a list of whole projectors, with layers inside them"),
    ),
    "HrmTextForCausalLM": (("order", r"z_L_init", _START),),
    "IBertForMaskedLM": (("group", r"(?:ln_input_act|activation)\.", "ranges of the numbers that go into a norm"),),
    "Idefics3ForConditionalGeneration": (("group", r"modality_projection", _UNSAID),),
    "Inkling2ForCausalLM": _RESIDUAL,
    "Inkling2ForConditionalGeneration": _RESIDUAL,
    "InklingForConditionalGeneration": (
        ("group", r"audio\.encoder\.weight", _UNSAID),
        ("layer", r"visual\.layers\.", "its files have no dot before the number"),
    ),
    "JanusForConditionalGeneration": (
        ("layer", r"vqmodel\.", _CODEC),
        ("group", r"aligner\.hidden_layers", _UNSAID),
        ("head", r"generation_head", _OTHER_HEAD),
    ),
    "JetMoeForCausalLM": (("group", r"self_attention\.experts", "experts that are attention heads"),),
    "JinaEmbeddingsV3ForMaskedLM": (("group", r"mixer\.out_proj", "Mamba's mixer has an out_proj too"),),
    "LongcatFlashForCausalLM": (
        ("sizes", "num_hidden_layers", "transformers counts two for each layer of this model"),
    ),
    "MBartForCausalLM": _BART,
    "MPNetForMaskedLM": (("group", r"relative_attention_bias", _TABLE),),
    "Molmo2ForConditionalGeneration": (("group", r"image_projector\.w\d", _UNSAID),),
    "MptForCausalLM": (("sizes", "max_position_embeddings", "has no table of positions, and still a longest text"),),
    "MvpForCausalLM": _BART,
    "Nemotron3_5TranscribeForConditionalGeneration": (("sizes", "num_hidden_layers", _LIST),),
    "NemotronHForCausalLM": (("sizes", "num_hidden_layers", _LIST),),
    "NemotronH_Omni_Reasoning_V3": (
        ("sizes", "num_hidden_layers", _LIST),
        ("group", r"mlp1\.0", _NUMBERED),
        ("head", r"lm_head", "transformers does not say which module its head is"),
    ),
    "NomicBertForMaskedLM": (("sizes", "tie_word_embeddings", "left to its class"),),
    "OPTForCausalLM": (("order", r"final_layer_norm", _EARLY),),
    "PI0ForConditionalGeneration": (
        ("group", r"gemma_expert\.lm_head", "an unused embedding, saved under the name of a head"),
        ("head", r"gemma_expert\.lm_head", "the same"),
    ),
    "PLBartForCausalLM": _BART,
    "PPFormulaNetForConditionalGeneration": (("kind", r"model\.encoder\.", _VISION),),
    "Phi4MultimodalForCausalLM": (("group", r"global_(?:mean|invstd)", "numbers that scale sound before the layers"),),
    "Pix2StructForConditionalGeneration": (("kind", r"^encoder\.", _VISION),),
    "ProphetNetForCausalLM": _BART,
    "QianfanOCRForConditionalGeneration": (("group", r"mlp1\.0", _NUMBERED),),
    "Qwen2_5OmniThinkerForConditionalGeneration": (("group", r"audio_bos_eos_token", _UNSAID),),
    "SmolVLMForConditionalGeneration": (("group", r"modality_projection", _UNSAID),),
    "UdopForConditionalGeneration": (("group", r"relative_attention_bias", _TABLE),),
    "UnlimitedOcrForConditionalGeneration": _NECK,
    "VibeVoiceAsrForConditionalGeneration": (("layer", r"tokenizer_encoder\.(?:conv_layers|stem)\.", _CODEC),),
    "XLNetLMHeadModel": (
        ("order", r"mask_emb", _START),
        ("sizes", "max_position_embeddings", "transformers gives -1 for a text of any length"),
    ),
    "ZayaForCausalLM": (("order", r"input_hidden_states", _START),),
}
#: These mappings are built in every run; the others are marked slow.
QUICK = ("causal", "masked")


def names_against(tree: Tree, *, ordered: bool) -> Iterator[tuple[str, str, object, object]]:
    """Where names and modules disagree: (law, name, what the name tells, what the modules tell)."""
    for tensor in tree.tensors:
        for name in tensor.names:
            for law, told, true in _laws(tensor, name):
                if true is not None and told != true:
                    yield law, name, told, true
    yield from _input_embedding(tree)
    yield from _sizes(tree)
    if ordered:
        yield from _order(tree)


def _laws(tensor: TreeTensor, name: str) -> Iterator[tuple[str, object, object]]:
    layer = layer_of(name)
    yield "group", group_of(name), tensor.part
    yield "layer", layer.index if layer else "none", "none" if tensor.layer is None else tensor.layer
    if not tensor.tied:
        yield "head", is_head(name), tensor.is_head
    if kind_of(name) != "projector":  # may lie in the vision tower, or beside it
        yield "kind", kind_of(name), tensor.kind


def _input_embedding(tree: Tree) -> Iterator[tuple[str, str, object, object]]:
    """The token embedding is the module that transformers takes for it, or shares its weight."""
    true = [tensor for tensor in tree.tensors if tensor.is_embedding]
    name = embedding_of([name for tensor in tree.tensors for name in tensor.names])
    told = next((tensor for tensor in tree.tensors if name in tensor.names), None)
    if true and (told is None or not (told.is_embedding or told.tied)):
        yield "embedding", true[0].names[0], name, true[0].names[0]


def _order(tree: Tree) -> Iterator[tuple[str, str, object, object]]:
    """What is defined in front of the text layers comes before them, what is defined behind them after."""
    layered = [place for place, tensor in enumerate(tree.tensors) if tensor.layer is not None and _is_text(tensor)]
    for place, tensor in enumerate(tree.tensors):
        if layered and tensor.layer is None and _is_text(tensor) and not tensor.names[0].startswith("lm_head"):
            true = place < layered[0]
            yield from (("order", n, before_layers(n), true) for n in tensor.names if before_layers(n) != true)


def _sizes(tree: Tree) -> Iterator[tuple[str, str, object, object]]:
    """A config's text model and its sizes are those that transformers reads from it."""
    config, text = tree.config.to_dict(), tree.config.get_text_config(decoder=True)
    yield from _unequal("model_type", text_part(config)["model_type"], text.to_dict()["model_type"])
    yield from _unequal("num_hidden_layers", layer_count(config), getattr(text, "num_hidden_layers", None))
    yield from _unequal("vocab_size", vocabulary_size(config), getattr(text, "vocab_size", None))
    yield from _unequal(
        "max_position_embeddings", max_positions(config), getattr(text, "max_position_embeddings", None)
    )
    if (tied := getattr(tree.config, "tie_word_embeddings", None)) is not None:
        yield from _unequal("tie_word_embeddings", ties_embeddings(config), tied)


def _unequal(key: str, told: object, true: object) -> Iterator[tuple[str, str, object, object]]:
    if told != true:
        yield "sizes", key, told, true


def _is_text(tensor: TreeTensor) -> bool:
    return kind_of(tensor.names[0]) == "text"


def cases():
    for architecture, mapping in architectures().items():
        if architecture not in NOT_BUILT:
            yield pytest.param(architecture, mapping, marks=() if mapping in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("architecture", "mapping"), cases())
def test_names_tell_what_the_module_tree_tells(architecture, mapping):
    """Part, layer, head, token embedding, kind of tower, and before or behind the layers."""
    rows = AMBIGUOUS.get(architecture, ())
    differences = list(names_against(tree_of(architecture), ordered=mapping == "causal"))
    unexplained = [
        one for one in differences if not any(one[0] == law and re.search(pattern, one[1]) for law, pattern, _ in rows)
    ]
    assert unexplained == []
    stale = [row for row in rows if not any(row[0] == law and re.search(row[1], name) for law, name, *_ in differences)]
    assert stale == [], "names tell this now; remove the row"


def test_every_row_names_an_architecture_of_this_transformers():
    assert {*NOT_BUILT, *AMBIGUOUS} <= set(architectures())


@pytest.mark.parametrize("architecture", NOT_BUILT)
def test_what_is_listed_as_not_built_cannot_be_built(architecture):
    with pytest.raises((ImportError, ValueError)):
        tree_of(architecture)
