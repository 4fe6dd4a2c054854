"""Tiny models on disk: Llama-shaped tables of random tensors, and folders as transformers writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

WORDS = ["<unk>", "<s>", "</s>", "safe", "unsafe", "user", "assistant", ":", "hello", "kill", "a", "python", "process"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}assistant :"

#: Embeddings, norms and the head are left out of a guard vector by default.
LEFT_OUT = ("embed", "norm", "lm_head")


def llama(
    seed: int,
    *,
    vocab: int = 24,
    hidden: int = 16,
    layers: int = 2,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensors:
    """The tensors of a Llama by name, random."""
    draw = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return (0.1 * torch.randn(*shape, generator=draw)).to(dtype)

    tensors = {"model.embed_tokens.weight": tensor(vocab, hidden), "model.norm.weight": tensor(hidden)}
    if not tied:
        tensors["lm_head.weight"] = tensor(vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}self_attn.{part}_proj.weight": tensor(hidden, hidden) for part in "qkvo"}
        tensors |= {f"{at}mlp.{part}_proj.weight": tensor(2 * hidden, hidden) for part in ("gate", "up")}
        tensors |= {f"{at}mlp.down_proj.weight": tensor(hidden, 2 * hidden)}
        tensors |= {f"{at}{part}_layernorm.weight": tensor(hidden) for part in ("input", "post_attention")}
    return tensors


def perturbed(tensors: Tensors, seed: int, size: float = 0.02) -> Tensors:
    """The same model after some training: every tensor moved a little."""
    draw = torch.Generator().manual_seed(seed)
    return {name: (t.float() + size * torch.randn(t.shape, generator=draw)).to(t.dtype) for name, t in tensors.items()}


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Every tensor in another dtype."""
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write(folder: Path, tensors: Tensors, *, shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """A model folder: safetensors, in one file or in shards with an index, and ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    placed = {name: f"model-{1 + i % shards:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(placed.values())):
        save_file({n: tensors[n] for n in names if placed[n] == shard}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def read(folder: Path) -> Tensors:
    """Every tensor of a folder, as safetensors' own reader reads it."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def same_bytes(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(*as_bytes)


def composed(target: torch.Tensor, guard: torch.Tensor, base: torch.Tensor, scale: float) -> torch.Tensor:
    """The formula, in fp32 (fp64 where an operand is), rounded once."""
    wide = torch.float64 if torch.float64 in (target.dtype, guard.dtype, base.dtype) else torch.float32
    return (target.to(wide) + scale * (guard.to(wide) - base.to(wide))).to(target.dtype)


def left_out(name: str) -> bool:
    """Whether compose-guard leaves a tensor as it is in the target, unless told otherwise."""
    return any(part in name for part in LEFT_OUT)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by relative path, with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def tokenizer(folder: Path, words: list[str] | None = None) -> None:
    """A tokenizer of whole words, with a chat template, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(words or WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    outer.save_pretrained(folder)


def transformer(folder: Path, family: str, *, tied: bool, seed: int = 0, vocab: int = 24) -> Path:
    """A random model of a family, saved by transformers, fp32, with a tokenizer."""
    import transformers as tf

    shape: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if family == "llama":
        model: Any = tf.LlamaForCausalLM(tf.LlamaConfig(**shape))
    elif family == "qwen3":
        model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape))
    elif family == "gemma3":
        shape |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        model = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**shape))
    else:
        raise ValueError(family)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


def rewrite(folder: Path, tensors: Tensors) -> None:
    """Other weights into a folder that has ``model.safetensors``; its config says their dtype."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def copy(folder: Path, to: Path) -> Path:
    """A folder's files again, elsewhere."""
    shutil.copytree(folder, to)
    return to


def lora_of_ones(folder: Path, module: str, shape: tuple[int, int], rank: int = 1, **config: object) -> Path:
    """A PEFT LoRA adapter that adds alpha to every weight of one module; alpha is 1 unless the configuration says more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1} | config))
    (rows, columns), at = shape, f"base_model.model.{module}"
    factors = {f"{at}.lora_A.weight": torch.ones(rank, columns), f"{at}.lora_B.weight": torch.ones(rows, rank)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def lora(folder: Path, base: Tensors, names: list[str], seed: int, rank: int = 2) -> Path:
    """A PEFT LoRA adapter that changes some matrices of a model."""
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": rank, "r": rank}))
    factors = {}
    for name in names:
        rows, columns = base[name].shape
        at = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{at}.lora_A.weight"] = 0.1 * torch.randn(rank, columns, generator=draw)
        factors[f"{at}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, generator=draw)
    save_file(factors, folder / "adapter_model.safetensors")
    return folder
