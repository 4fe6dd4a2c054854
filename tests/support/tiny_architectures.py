"""Tiny random models of many architectures, saved by transformers; each with whatever its config says layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
WINDOW = {"sliding_window": 4, "layer_types": KINDS}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
QWEN_VISION = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "in_channels": 3}

#: Class of the model, class of its config, keys.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**TEXT, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**TEXT, "use_sliding_window": True, "max_window_layers": 2, **WINDOW}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**TEXT, "use_sliding_window": True, "max_window_layers": 2, **WINDOW}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**TEXT, **WINDOW, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**TEXT, **WINDOW, "tie_word_embeddings": True}),
    "gemma3-vision": ("Gemma3ForConditionalGeneration", "Gemma3Config", {
        "text_config": {**TEXT, **WINDOW, "tie_word_embeddings": True},
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        "mm_tokens_per_image": 4, "image_token_index": 39, "boi_token_index": 37, "eoi_token_index": 38,
        "tie_word_embeddings": True,
    }),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**TEXT, "head_dim": 4}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**TEXT, "no_rope_layers": [1, 0, 1, 0], "tie_word_embeddings": True}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**TEXT, "head_dim": 4}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {**TEXT, "head_dim": 4}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": 40, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2,
    }),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**TEXT, "num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {
        **TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
    }),
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {
        **TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8, "mlp_only_layers": [1], "decoder_sparse_step": 1,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig", {
        "text_config": {**TEXT, "head_dim": None, **MROPE, "hidden_size": 32},
        "vision_config": {**QWEN_VISION, "hidden_size": 32}, "image_token_id": 37, "video_token_id": 38,
        "vision_start_token_id": 35, "vision_end_token_id": 36,
    }),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", {
        "text_config": {**TEXT, "head_dim": None, **MROPE, "hidden_size": 32},
        "vision_config": {
            **{key: value for key, value in QWEN_VISION.items() if key != "embed_dim"}, "intermediate_size": 32,
            "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 16,
        },
        "image_token_id": 37, "video_token_id": 38, "vision_start_token_id": 35, "vision_end_token_id": 36,
    }),
}  # fmt: skip


def save(folder: Path, family: str, seeds: list[int], **changed: Any) -> list[Path]:
    """Models of a family with the same config and other weights, one for each seed: folders named by it."""
    import transformers

    model_class, config_class, keys = FAMILIES[family]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**{**keys, **changed}))
    made = []
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
        made.append(folder / str(seed))
        model.save_pretrained(made[-1])
    return made


def load(folder: Path, family: str) -> tuple[Any, dict[str, Any]]:
    """A folder as transformers loads it, and what it says of the keys."""
    import transformers

    model_class, _, _ = FAMILIES[family]
    model, report = getattr(transformers, model_class).from_pretrained(folder, output_loading_info=True, dtype="auto")
    return model.eval(), report


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of :func:`save`, as stored."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
