"""Tiny models for the vocabulary tests: a tokenizer of one of three kinds, a config, and an embedding by its header."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from weightops.io.safetensors import StoredTensor
from weightops.io.weights import Weights
from weightops.merge.config.reading import parse
from weightops.merge.tokens.planning import Vocabulary, plan_vocabulary


def words(*tokens: str) -> Tokenizer:
    """Whole words; the first is the unknown token."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def bpe(letters: str, *merges: str) -> Tokenizer:
    """Byte-level BPE over some letters; a merge is written ``a b``."""
    vocabulary = dict.fromkeys([*letters, *(merge.replace(" ", "") for merge in merges)])
    numbered = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(numbered, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram(**scores: float) -> Tokenizer:
    return Tokenizer(models.Unigram([("<unk>", 0.0), *scores.items()], unk_id=0))


def special(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def ids(tokenizer: Tokenizer) -> dict[str, int]:
    return tokenizer.get_vocab(with_added_tokens=True)


def model(
    folder: Path, tokenizer: Tokenizer | None, rows: int | None = None, more: dict | None = None, **settings
) -> Weights:
    """A folder as transformers saves it, with the header of an embedding of ``rows`` (as many as tokens)."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)
        rows = rows or tokenizer.get_vocab_size()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows, **(more or {})}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [StoredTensor("model.embed_tokens.weight", "F32", (rows, 4), folder / "model.safetensors", 0)]
    return Weights(str(folder), {tensor.name: tensor for tensor in tensors}, folder, None, config)


def config_of(names: list[str], text: str = "", base: str | None = None):
    listed = "".join(f"  - model: {name}\n    parameters: {{weight: 1}}\n" for name in names)
    head = f"base_model: {base}\n" if base else ""
    method = "task_arithmetic" if base else "linear"
    (config,) = parse(f"merge_method: {method}\n{head}models:\n{listed}{text}\n", "c.yml")
    return config


def plan(weights: dict[str, Weights], text: str = "", base: str | None = None) -> Vocabulary | None:
    """The vocabulary of a merge of these models; models beside the merge are those whose name begins with x."""
    config = config_of([name for name in weights if name != base and not name.startswith("x")], text, base)
    return plan_vocabulary(config, weights, config.referenced_models()[0])


def out_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The tokens of the planned tokenizer.json, as the library reads it."""
    return ids(Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode()))


def reader(matrices: dict[str, np.ndarray], calls: list | None = None):
    def read(name: str, rows: range) -> np.ndarray:
        assert len(rows), "an empty read"
        assert rows.stop <= len(matrices[name]), "a read past the end"
        if calls is not None:
            calls.append((name, rows))
        return matrices[name][rows.start : rows.stop].astype(np.float32)

    return read
