"""What a stranger puts beside weights: adapters, configurations, indices, tokenizers, guard cards. See ``fuzzing``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from fuzzing import as_json, fuzzed, keeps_the_law, mutated_bytes, mutated_values
from hypothesis import given
from safetensors.torch import save_file

from weightops.algebra.opening import open_checkpoint
from weightops.guard.card import GuardCard
from weightops.io.folder import stored_tensors
from weightops.io.tokenizer import tokenizer_files, tokenizer_of
from weightops.merge.tokens.chat_template import template_of
from weightops.output.save import carried_files

Q = "model.layers.0.self_attn.q_proj"
ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": 8, r".*\.v_proj": 2}, "rank_pattern": {},
    "use_rslora": False, "fan_in_fan_out": False, "init_lora_weights": True, "target_modules": ["q_proj"],
    "modules_to_save": None, "base_model_name_or_path": "org/base", "use_dora": False,
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 1,
    "vocab_size": 13, "torch_dtype": "bfloat16", "tie_word_embeddings": False, "rope_scaling": {"type": "linear"},
    "eos_token_id": [2, 1], "text_config": {"vocab_size": 13},
}  # fmt: skip
CARD = {"system": "s", "labels": ["safe", "unsafe"], "label_ids": [3, 4], "threshold": 0.5, "template": "{text}"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with a tokenizer."""
    folder = tiny.write(tmp_path_factory.mktemp("base"), tiny.llama(0, layers=1, vocab=13), config=CONFIG)
    tiny.tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of one module."""
    folder = tmp_path_factory.mktemp("adapter")
    factors = {f"base_model.model.{Q}.lora_{side}.weight": torch.ones(*shape).bfloat16()
               for side, shape in (("A", (2, 16)), ("B", (16, 2)))}  # fmt: skip
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


@fuzzed(120)
@given(value=mutated_values([ADAPTER]))
def test_settings_of_adapters(value, base, adapter):
    (adapter / "adapter_config.json").write_bytes(as_json(value))
    keeps_the_law(lambda: open_checkpoint(f"{base}+{adapter}").plan())


NAMES = {f"base_model.model.{Q}.lora_{side}.weight": [1] for side in "AB"}


@fuzzed(100)
@given(value=mutated_values([NAMES | {"base_model.model.lm_head.modules_to_save.weight": [2]}]))
def test_names_of_tensors_in_adapters(value, base, adapter, tmp_path_factory):
    folder = adapter.parent / "names"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(as_json(ADAPTER))
    names = [name for name in value if isinstance(name, str)] if isinstance(value, dict) else []
    header = {name: {"dtype": "U8", "shape": [1, 1], "data_offsets": [n, n + 1]} for n, name in enumerate(names)}
    text = as_json(header)
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(names)))
    keeps_the_law(lambda: open_checkpoint(f"{base}+{folder}").plan())


@fuzzed(120)
@given(value=mutated_values([CONFIG]))
def test_configurations(value, base, tmp_path_factory):
    (base / "config.json").write_bytes(as_json(value))

    def read() -> None:
        model = open_checkpoint(base)
        model.plan()
        carried_files(base)

    keeps_the_law(read)


@fuzzed(120)
@given(
    value=mutated_values(
        [{"metadata": {"total_size": 9}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}]
    )
)
def test_indices(value, adapter):
    folder = adapter.parent / "sharded"
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(as_json(value))
    keeps_the_law(lambda: stored_tensors(folder))


@fuzzed(120)
@given(value=mutated_values([CARD]))
def test_guard_cards(value, adapter):
    (adapter / "guard.json").write_bytes(as_json(value))
    keeps_the_law(lambda: GuardCard.read(adapter))


JSON_WORDS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\ud800",
    b"\xff",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-Infinity",
    b"9" * 5000,
]


@fuzzed(120)
@given(raw=mutated_bytes([json.dumps(CONFIG).encode(), json.dumps(CARD).encode()], JSON_WORDS))
def test_bytes_of_json(raw, adapter):
    folder = adapter.parent / "json"
    folder.mkdir(exist_ok=True)
    (folder / "guard.json").write_bytes(raw)
    keeps_the_law(lambda: GuardCard.read(folder))


def tokenizers_of(folder: Path) -> None:
    """Everything that is read of a model's tokenizer."""
    weights = open_checkpoint(folder).source
    tokenizer_of(weights).get_vocab()
    tokenizer_files(folder)
    template_of(weights)


@fuzzed(100)
@given(
    data=mutated_values([{"file": name} for name in ("tokenizer.json", "tokenizer_config.json")]),
    more=mutated_values([{}]),
)
def test_tokenizers_replaced_whole(data, more, adapter, base):
    folder = adapter.parent / "replaced"
    if not folder.exists():
        tiny.write(folder, tiny.llama(0, layers=1, vocab=13))
        tiny.tokenizer(folder)
    name = data.get("file") if isinstance(data, dict) else None
    file = folder / (name if name in ("tokenizer.json", "tokenizer_config.json") else "tokenizer.json")
    before = file.read_bytes()
    file.write_bytes(as_json(more))
    try:
        keeps_the_law(lambda: tokenizers_of(folder))
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(name, adapter):
    folder = adapter.parent / f"tokenizer-{name}"
    tiny.write(folder, tiny.llama(0, layers=1, vocab=13))
    tiny.tokenizer(folder)
    seed = json.loads((folder / name).read_text())

    @fuzzed(150)
    @given(value=mutated_values([seed, seed | {"added_tokens_decoder": {"40": {"content": "<new>", "special": True}}}]))
    def fuzz(value: object) -> None:
        (folder / name).write_bytes(as_json(value))
        keeps_the_law(lambda: tokenizers_of(folder))

    fuzz()


def test_the_seeds_are_sound(base, adapter, tmp_path):
    (base / "config.json").write_bytes(as_json(CONFIG))
    (adapter / "adapter_config.json").write_bytes(as_json(ADAPTER))
    (tmp_path / "guard.json").write_bytes(as_json(CARD))
    assert keeps_the_law(lambda: open_checkpoint(f"{base}+{adapter}").plan().check())
    assert keeps_the_law(lambda: tokenizers_of(base))
    assert keeps_the_law(lambda: GuardCard.read(tmp_path))
