import json
import os

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import write_chat_model

from weightops.algebra.opening import open_checkpoint
from weightops.errors import WeightopsError
from weightops.io import pickled
from weightops.io.pickled import converted, is_pickled


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def tensors():
    made = {f"t.{dtype}": (torch.arange(6).reshape(2, 3) % 2).to(dtype) for dtype in DTYPES}
    made["transposed"] = torch.arange(6.0).reshape(2, 3).T
    made["scalar"] = torch.tensor(3.0)
    made["empty"] = torch.zeros(0, 4)
    return made


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("archive", [True, False])
def test_a_bare_file_keeps_every_name_value_and_dtype(tmp_path, archive):
    torch.save(tensors(), tmp_path / "weights.bin", _use_new_zipfile_serialization=archive)
    file = converted(tmp_path / "weights.bin")
    assert file.name == "model.safetensors"
    same(load_file(file), tensors())


def model_folder(folder, state, **config):
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"not weights")
    return folder


def test_a_folder_becomes_a_complete_folder(tmp_path):
    found = converted(model_folder(tmp_path / "model", tensors()))
    assert sorted(file.name for file in found.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((found / "config.json").read_text()) == {"model_type": "llama"}
    same(load_file(found / "model.safetensors"), tensors())


def test_a_converted_model_is_the_model(tmp_path, chat_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_model)
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(
        model.state_dict(), folder / "pytorch_model.bin"
    )  # the tied head is in it, sharing the embedding's memory
    (folder / "config.json").write_text((chat_model / "config.json").read_text())
    found = converted(folder)
    same(load_file(found / "model.safetensors"), load_file(chat_model / "model.safetensors"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(found)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({}, 1),
        ({"tie_word_embeddings": True}, 1),
        ({"tie_word_embeddings": False}, 2),
        ({"text_config": {"tie_word_embeddings": False}}, 2),
    ],
)
def test_a_name_that_repeats_anothers_memory_is_written_once_unless_the_config_says_untied(tmp_path, config, written):
    weight = torch.randn(4, 3)
    state = {"embed.weight": weight, "lm_head.weight": weight}
    opened = open_checkpoint(model_folder(tmp_path / "model", state, **config))
    assert list(opened.names) == ["embed.weight", "lm_head.weight"][:written]
    assert all(torch.equal(opened.tensor(name), weight) for name in opened.names)


def test_views_of_one_memory_that_differ_are_all_written(tmp_path):
    whole = torch.arange(12.0).reshape(4, 3)
    state = {"whole": whole, "rows": whole[:2], "transposed": whole.T}
    same(load_file(converted(model_folder(tmp_path / "model", state)) / "model.safetensors"), state)


def sharded(folder, **changed):
    folder.mkdir()
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, shard in names.items():
        torch.save({name: torch.full((2,), ord(name))}, folder / shard)
    index = {"metadata": {"total_size": 32}, "weight_map": names | changed}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def test_shards_stay_shards_under_an_index_that_our_reader_follows(tmp_path):
    from weightops.io.folder import stored_tensors

    folder = converted(sharded(tmp_path / "model"))
    assert sorted(file.name for file in folder.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    assert stored_tensors(folder).keys() == {"a", "b"}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    same(load_file(folder / index["weight_map"]["b"]), {"b": torch.full((2,), ord("b"))})
    assert index["metadata"]["total_size"] == 32


@pytest.mark.parametrize("shard", ["../outside.bin", "/etc/hostname", "sub/x.bin", "link.bin", "missing.bin"])
def test_a_shard_is_a_plain_file_inside_the_folder(tmp_path, shard):
    torch.save({"b": torch.zeros(1)}, tmp_path / "outside.bin")
    folder = sharded(tmp_path / "model", b=shard)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    one_line(lambda: converted(folder), shard)


class Attack:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path, archive):
    state = {"a": torch.zeros(1), "b": Attack(str(tmp_path / "ran"))}
    torch.save(state, tmp_path / "weights.bin", _use_new_zipfile_serialization=archive)
    (tmp_path / "ran").unlink(missing_ok=True)
    one_line(lambda: converted(tmp_path / "weights.bin"), "can run any code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"neither one nor the other"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    one_line(lambda: converted(tmp_path / "weights.pt"), "weights.pt")


def test_a_file_cut_short_is_one_line(tmp_path):
    torch.save(tensors(), tmp_path / "weights.pt")
    os.truncate(tmp_path / "weights.pt", (tmp_path / "weights.pt").stat().st_size // 2)
    one_line(lambda: converted(tmp_path / "weights.pt"), "damaged")


@pytest.mark.parametrize(
    "state",
    [[torch.zeros(1)], {}, {"step": 3}, {"model": {"a": torch.zeros(1)}}, {"a": torch.zeros(2, 2).to_sparse()},
     {"a": torch.zeros(1, dtype=torch.complex128)}],
)  # fmt: skip
def test_anything_but_dense_tensors_by_name_is_one_line(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    one_line(lambda: converted(tmp_path / "weights.pt"), "save")


def test_a_model_is_converted_once_and_again_when_its_config_changes(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "model", tensors())
    first = converted(folder)
    with monkeypatch.context() as patch:
        patch.setattr(pickled, "_read", lambda *_: pytest.fail("converted twice"))
        assert converted(folder) == first
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    assert converted(folder) != first
    assert json.loads((converted(folder) / "config.json").read_text()) == {"model_type": "mistral"}


def test_a_folder_that_also_has_safetensors_is_not_pickled(tmp_path):
    folder = model_folder(tmp_path / "model", tensors())
    assert is_pickled(folder)
    assert is_pickled(folder / "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(b"")
    assert not is_pickled(folder)


def one_line(action, said):
    with pytest.raises(WeightopsError) as caught:
        action()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
