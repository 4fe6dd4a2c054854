"""Listing reads headers alone: what is listed of a GGUF or a .bin is what converting it would give, and nothing runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import write_chat_model
from tiny_gguf import write_gguf

from weightops.algebra import model_listing, opening
from weightops.algebra.model_listing import list_model
from weightops.errors import WeightopsError
from weightops.io.gguf import ALIASES, Alias, dequantised
from weightops.io.gguf_names import LAYERS, hub_tensor_name
from weightops.io.listing import list_gguf, list_pickled


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_chat_model(tmp_path_factory.mktemp("chat")))


@pytest.fixture
def _never_convert(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("listing converts nothing")

    monkeypatch.setattr(opening, "dequantised", refuse)
    monkeypatch.setattr("weightops.io.pickled.converted", refuse)
    monkeypatch.setattr("weightops.io.cache.cached", refuse)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_is_listed_by_the_names_and_shapes_that_converting_gives(tied, tmp_path, tokenizer):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tokenizer, tied=tied)
    listing = list_gguf(file)
    wanted = load_file(dequantised(file) / "model.safetensors")
    assert {name: t.shape for name, t in listing.tensors.items()} == {n: tuple(t.shape) for n, t in wanted.items()}
    kinds = {t.dtype for name, t in listing.tensors.items() if "norm" not in name}
    assert kinds == {"Q8_0"}  # as stored, not as converted
    matrix = listing.tensors["model.layers.0.mlp.up_proj.weight"]
    assert matrix.nbytes == matrix.count // 32 * 34  # 32 bytes and a half-precision scale for each 32 weights
    assert listing.notes == ()


@pytest.mark.usefixtures("_never_convert")
def test_an_alias_a_folder_and_a_file_are_listed_alike_and_not_converted(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "folder" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(file, tokenizer)
    monkeypatch.setitem(ALIASES, "tiny", Alias("tiny", "t.gguf", package="tiny", hub="org/tiny"))
    monkeypatch.setattr(model_listing, "alias_file", lambda alias: file)
    listed = [list_model(spec).base.tensors for spec in ("tiny", str(file), str(file.parent))]
    assert listed[0] == listed[1] == listed[2]


def test_names_that_are_not_known_are_the_files_own_and_that_is_said(tmp_path, tokenizer):
    file = tmp_path / "other.gguf"
    write_gguf(file, tokenizer, architecture="falcon")
    listing = list_gguf(file)
    assert "blk.0.ffn_up.weight" in listing.tensors
    assert (
        f"{len(listing.tensors)} of {len(listing.tensors)} tensors have the GGUF file's own names" in listing.notes[0]
    )


@pytest.mark.parametrize("architecture", LAYERS)
def test_every_name_is_the_one_that_transformers_maps(architecture):
    """Over the module tree of each architecture: transformers' own map from GGUF's names to its own."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    kind = {"gemma3": "gemma3_text"}.get(architecture, architecture)
    config = AutoConfig.for_model(kind, num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=128)
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    known = get_gguf_hf_weights_map(model, TensorProcessor(), model_type=architecture, num_layers=2)
    parameters = {name for name, _ in model.named_parameters()}
    ours = {name: hub_tensor_name(name, architecture) for name, theirs in known.items() if theirs in parameters}
    assert ours
    assert ours == {name: theirs for name, theirs in known.items() if theirs in parameters}


@pytest.mark.parametrize("name", ["blk.x.ffn_up.weight", "blk.0.ffn_up", "blk.0.nothing.weight", "", "output.weight\n"])
def test_a_strange_name_has_no_other(name):
    assert hub_tensor_name(name, "llama") is None
    assert hub_tensor_name("output.weight", 3) is None


@pytest.mark.usefixtures("_never_convert")
def test_a_bin_is_listed_without_converting_or_running_it(tmp_path):
    tensors = {"a.weight": torch.zeros(3, 4, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.int64)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    wanted = {"a.weight": ("BF16", (3, 4), 24), "b": ("I64", (2,), 16)}
    for path in (tmp_path / "pytorch_model.bin", tmp_path):
        listed = list_model(str(path)).base.tensors
        assert {n: (t.dtype, t.shape, t.nbytes) for n, t in listed.items()} == wanted

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(WeightopsError, match=r"evil\.bin"):
        list_pickled(tmp_path / "evil.bin")
    assert not (tmp_path / "touched").exists()


def test_a_truncated_gguf_is_refused_in_a_line(tmp_path, tokenizer):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tokenizer)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightopsError, match="its tensors need"):
        list_gguf(file)
