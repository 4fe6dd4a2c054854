import json
import os
import time

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


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


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
    folder = converted(model_folder(tmp_path / "model", tensors()))
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "llama"}
    same(load_file(folder / "model.safetensors"), tensors())


def test_a_converted_model_is_the_model(tmp_path, chat_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_model)
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(
        model.state_dict(), folder / "pytorch_model.bin"
    )  # the tied head is in it, sharing the embedding's memory
    (folder / "config.json").write_text((chat_model / "config.json").read_text())
    entry = converted(folder)
    same(load_file(entry / "model.safetensors"), load_file(chat_model / "model.safetensors"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(entry)(ids).logits, model(ids).logits)


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


def one_line(action, message):
    with pytest.raises(WeightopsError) as caught:
        action()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def archive(file, pickle, records=(), compression=0):
    """A torch archive of any pickle and records."""
    import zipfile

    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("x/data.pkl", pickle)
        made.writestr("x/byteorder", "little")
        for key, data in dict(records).items():
            made.writestr(f"x/data/{key}", data)
    return file


def one_tensor(storage="4", offset="0", shape="4", stride="1", name="a"):
    """The pickle of {name: a float32 tensor}, its numbers as the text form of pickles writes them."""
    rebuild = f"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI{storage}\ntQ"
    return f"(V{name}\n{rebuild}I{offset}\n(I{shape}\nt(I{stride}\ntI00\n}}tRd.".encode()


def test_the_pickles_below_are_sound_but_for_what_they_say(tmp_path):
    tensors_read = load_file(
        converted(archive(tmp_path / "x.pt", one_tensor(), {"0": torch.arange(4.0).numpy().tobytes()}))
    )
    same(tensors_read, {"a": torch.arange(4.0)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"storage": "5"}, "its data should have 20 bytes, but the file has 16"),
        ({"storage": "400000000", "shape": "400000000"}, "its data should have 1600000000 bytes"),
        ({"shape": "5"}, "more elements than its data (4)"),
        ({"shape": "400000000", "stride": "0"}, "more elements than its data (4)"),
        ({"stride": "2"}, "extends past the end of its data"),
        ({"offset": "1"}, "extends past the end of its data"),
        ({"offset": "-1"}, "no valid offset"),
        ({"shape": "-4"}, "no valid shape or strides"),
        ({"shape": "0\nI" + "9" * 18}, "damaged"),
        ({"shape": "1\nI" * 40 + "1", "stride": "1\nI" * 40 + "1"}, "41 dimensions"),
        ({"name": "\\ud800"}, "is not valid text"),
    ],
)  # fmt: skip
def test_a_tensor_that_is_more_than_its_data_is_refused(change, says, tmp_path):
    file = archive(tmp_path / "x.pt", one_tensor(**change), {"0": bytes(16)})
    one_line(lambda: converted(file), says)


@pytest.mark.parametrize(
    ("pickle", "says"),
    [
        pytest.param(b"\x80\x02" + b"]" * 600_000 + b".", "more than 500000 opcodes", id="a flood"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\x7f.", "not a dict of tensors", id="a memo of 64 GB"),
        pytest.param(b"}(" + b"(" + b"N\x85" * 100_000 + b"I1\nu.", "", id="deep keys"),
        pytest.param(
            b"}(Nq\x00h\x00\x86" + b"q\x00h\x00\x86" * 60 + b"Nu.", "keys that are not text", id="endless hash"
        ),
        pytest.param(b"I" + b"9" * 5000 + b"\n.", "damaged", id="digits"),
        pytest.param(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "can run any code", id="a call"),
        pytest.param(b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "can run any code", id="a call by its name"),
        pytest.param(b"}(Va\nctorch._utils\n_rebuild_meta_tensor_no_storage\n(tRu.", "can run any code", id="meta"),
        pytest.param(b"R.", "damaged", id="an empty stack"),
        pytest.param(b"h\x00.", "damaged", id="an empty memo"),
        pytest.param(b"u.", "damaged", id="no mark"),
        pytest.param(b"", "damaged", id="nothing"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_one_line_at_once(pickle, says, zipped, tmp_path):
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
    file = archive(tmp_path / "x.pt", pickle) if zipped else tmp_path / "x.pt"
    if not zipped:
        file.write_bytes(magic + pickle + b"\x80\x02].")
    begin = time.process_time()
    with pytest.raises(WeightopsError) as caught:
        converted(file)
    assert time.process_time() - begin < 10
    assert says in str(caught.value)


def test_a_meta_tensor_is_one_line(tmp_path):
    torch.save({"a": torch.empty(10**9, device="meta")}, tmp_path / "x.pt")
    one_line(lambda: converted(tmp_path / "x.pt"), "objects besides tensors")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    file = archive(tmp_path / "x.pt", b"]" * 100_000_000 + b".", compression=8)
    assert file.stat().st_size < 200_000
    one_line(lambda: converted(file), "compressed")


def test_many_names_of_one_memory_do_not_multiply_the_file(tmp_path):
    weight = torch.zeros(10_000)
    state = {f"t{n}": weight[n:] for n in range(1000)}
    torch.save(state, tmp_path / "x.pt")
    one_line(lambda: converted(tmp_path / "x.pt"), "over 16 times the size of the file")


def test_parameters_fp8_and_state_dicts_of_modules_are_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    module[0].weight.requires_grad_(False)
    state = module.state_dict(keep_vars=True)
    state["fp8"] = torch.ones(4).to(torch.float8_e4m3fn)
    state["marked"] = torch.nn.Parameter(torch.ones(2))
    state["marked"].parallel = True
    torch.save(state, tmp_path / "x.pt")
    tensors_read = load_file(converted(tmp_path / "x.pt"))
    assert tensors_read.keys() == state.keys()
    assert all(torch.equal(tensors_read[name].float(), state[name].detach().float()) for name in state)
