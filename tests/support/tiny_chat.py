"""A tiny model that can be asked: random weights, a byte-level tokenizer, a chat template."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["is this safe unsafe safe unsafe or safe or unsafe", "user assistant system Task: Check the LAST message"]


def write_chat_model(folder: Path) -> Path:
    """A Llama of two layers in bf16, its embeddings tied; ``safe`` and ``unsafe`` are tokens. Returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ragged_rows(number: int) -> list[dict[str, list[int]]]:
    """Rows of very unlike length: where a mean of means is taken, short ones weigh too much."""
    draw = random.Random(0)
    return [{"input_ids": draw.choices(range(3, 250), k=draw.choice([3, 4, 30]))} for _ in range(number)]


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"vocab_size": 400, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    raw.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(**settings))
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<|endoftext|>", **tokens)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
