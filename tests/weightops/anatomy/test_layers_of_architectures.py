"""A cut config builds the very layers that were kept, for every causal model of transformers' auto mappings.

The whole model and the cut one are built without weights, and each kept layer is compared module by module: classes,
shapes of the parameters, and every plain number, flag and word that a module holds (windows, scales, kinds of
attention). A new architecture of transformers is tested without being listed. One that is not cut rightly needs an entry
in ``weightops/anatomy/layers_config.py``; one that cannot be cut, a row here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from auto_architectures import architectures, model_of

from weightops.anatomy.layer_cut import cut_layers
from weightops.anatomy.layers import main_stack
from weightops.errors import WeightopsError

DEPTH = 8
CUTS = ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5, 7])
#: In each run; the others are marked slow.
QUICK = ("Gemma3ForCausalLM", "Gemma4ForCausalLM", "GraniteSWAForCausalLM", "SmolLM3ForCausalLM", "JambaForCausalLM")
#: Architecture to what the refusal says.
REFUSED = {
    "BailingHybridForCausalLM": "num_nextn_predict_layers", "BltForCausalLM": "number of layers is unknown",
    "DeepseekV3ForCausalLM": "num_nextn_predict_layers", "DeepseekV4ForCausalLM": "num_nextn_predict_layers",
    "Gemma3nForCausalLM": "num_kv_shared_layers", "Glm4MoeForCausalLM": "num_nextn_predict_layers",
    "GPTNeoXJapaneseForCausalLM": "only its last layer has a bias", "HrmTextForCausalLM": "no stack of text layers",
    "MiniCPM3ForCausalLM": "square root of the number of layers",
    "MiniMaxForCausalLM": "decay of its linear attention", "NemotronHForCausalLM": "number of layers is unknown",
    "XLMWithLMHeadModel": "no stack of text layers", "ZambaForCausalLM": "share weights",
    "Zamba2ForCausalLM": "share weights",
}  # fmt: skip
#: The same for layers that do not follow each other.
REFUSED_WITH_GAPS = {
    "BeamForCausalLM": "cannot get other numbers", "BigBirdForCausalLM": "cannot get other numbers",
    "DiffLlamaForCausalLM": "cannot get other numbers", "JambaForCausalLM": "attn_layer_period",
    "Lfm2MoeForCausalLM": "num_dense_layers", "RecurrentGemmaForCausalLM": "block_types",
}  # fmt: skip
NOT_BUILT = {
    "Gemma3nForConditionalGeneration": "its vision tower is a timm model, and timm is no dependency",
    "Gemma4AssistantForCausalLM": "its default config contradicts itself",
    "Gemma4UnifiedAssistantForCausalLM": "its default config contradicts itself",
    "Qwen4ExpForCausalLM": "its default config builds no model",
}
#: Where a module notes which layer it is in.
PLACES = ("layer_idx", "layer_id", "layer_number", "layer_index", "layer_num", "block_idx")


def described(layer: torch.nn.Module) -> list[Any]:
    """Everything that a layer's modules hold but weights."""
    return [
        (
            name,
            type(module).__name__,
            {k: v for k, v in vars(module).items()
             if isinstance(v, int | float | str | None) and k not in PLACES and not k.startswith("_")},
            {k: tuple(v.shape) for k, v in module.named_parameters(recurse=False)},
        )
        for name, module in layer.named_modules()
    ]  # fmt: skip


def cases():
    for architecture, mapping in architectures().items():
        if mapping == "causal" and architecture not in NOT_BUILT:
            yield pytest.param(architecture, marks=() if architecture in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("architecture", cases())
def test_each_kept_layer_is_built_as_in_the_whole_model(architecture):
    whole = model_of(architecture, DEPTH)
    names, config = whole.state_dict().keys(), whole.config
    for kept in CUTS:
        reason = REFUSED.get(architecture) or (REFUSED_WITH_GAPS.get(architecture) if kept == CUTS[1] else None)
        if reason:
            with pytest.raises(WeightopsError, match=reason):
                cut_layers(names, {**config.to_dict(), "architectures": [architecture]}, kept)
            continue
        for raw in (config.to_dict(), {**config.to_diff_dict(), **_count(config)}):
            cut = cut_layers(names, {**raw, "architectures": [architecture]}, kept)
            assert_same_layers(whole, type(whole), type(config).from_dict(dict(cut.config)), kept)


def _count(config: Any) -> dict[str, Any]:
    """The number of layers, which a config that is the default one leaves out."""
    full = config.to_dict()
    return {
        key: full[key]
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_blocks")
        if key in full
    }


def assert_same_layers(whole: Any, model_class: Any, config: Any, kept: list[int]) -> None:
    with torch.device("meta"):
        cut = model_class(config)
    stack = main_stack(whole.state_dict().keys(), None) or ""
    layers, cut_stack = whole.get_submodule(stack[:-1]), cut.get_submodule(stack[:-1])
    assert len(cut_stack) == len(kept)
    for number, layer in enumerate(kept):
        assert described(cut_stack[number]) == described(layers[layer]), (number, layer)


def test_every_row_names_an_architecture_of_this_transformers():
    assert {*REFUSED, *REFUSED_WITH_GAPS, *NOT_BUILT, *QUICK} <= set(architectures())
