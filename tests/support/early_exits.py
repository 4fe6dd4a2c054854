"""Tiny models whose early exits agree with their last layer now and then, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from tiny_architectures import FAMILIES

#: Decoder-only models with attention in every layer.
PLAIN_STACKS = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "granite", "gpt2"),
    *("mixtral", "qwen3_moe"),
]
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, 23, 24, 25, 26]]


class Numbers:
    """A tokenizer whose texts are its token ids."""

    pad_token_id, eos_token_id, chat_template = 0, 2, None

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


def model_of(family: str, seed: int = 0) -> Any:
    """A random model of four layers in fp32; weights near enough to zero that layers change the answer only at times."""
    import transformers

    model_class, config_class, keys = FAMILIES[family]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**keys)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if "norm" in name or ".ln_" in name else 0.0
            weight.copy_(around + 0.12 * torch.randn(weight.shape, generator=draw))
    return model
