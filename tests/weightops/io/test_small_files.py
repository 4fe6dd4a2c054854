"""What goes with a model is read up to a bound, without waiting, and never through a link that leaves its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models as tiny

import weightops as wo
from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.io.adapter import read_adapter
from weightops.io.folder import read_json, stored_tensors
from weightops.io.gguf_header import read_gguf_header
from weightops.io.pickled import converted
from weightops.io.safetensors import read_header
from weightops.io.small_files import MOST_TEXT, inside, read_beside, read_small
from weightops.io.tokenizer import tokenizer_files, tokenizer_of
from weightops.io.weights import Weights
from weightops.merge.config.reading import load
from weightops.merge.tokens.chat_template import template_of
from weightops.output.save import carried_files

#: Every function that reads a file by its path.
READERS: dict[str, Callable[[Path], object]] = {
    "x": read_small,
    "config.json": read_json,
    "model.safetensors": read_header,
    "x.gguf": read_gguf_header,
    "merge.yaml": load,
    "weights.bin": converted,
    "guard.json": lambda file: GuardCard.read(file.parent),
    "adapter_config.json": lambda file: read_adapter(file.parent, "a"),
    "tokenizer.json": lambda file: tokenizer_of(Weights("a", {}, file.parent)),
    "chat_template.jinja": lambda file: template_of(Weights("a", {}, file.parent)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(name, kind, tmp_path):
    file = tmp_path / name
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    with pytest.raises(WeightopsError) as caught:
        READERS[name](file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith((".json", ".yaml", "x"))])
def test_a_file_over_the_bound_is_refused_and_not_read(name, tmp_path):
    with open(tmp_path / name, "wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(WeightopsError, match="the limit is"):
        READERS[name](tmp_path / name)


def test_a_file_that_grows_while_it_is_read_is_cut_at_the_bound(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_small(tmp_path / "x", 5) == b"12345"
    with pytest.raises(WeightopsError, match="it has 5 bytes, the limit is 4"):
        read_small(tmp_path / "x", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a secret beside it."""
    (tmp_path / "secret").write_text('{"secret": 1}')
    model = tiny.write(tmp_path / "model", tiny.llama(0, layers=1))
    tiny.tokenizer(model)
    return model


@pytest.mark.parametrize(
    "name", ["notes.txt", "vocab.txt", "config.json", "LICENSE", "additional_chat_templates/x.jinja", "guard.json"]
)
@pytest.mark.parametrize("by", ["absolute", "relative", "link to a link"])
def test_a_link_out_of_a_model_folder_is_refused_wherever_the_file_would_be_read(name, by, folder, tmp_path):
    file = folder / name
    file.unlink(missing_ok=True)
    file.parent.mkdir(exist_ok=True)
    if by == "link to a link":
        (folder / "between").symlink_to(tmp_path / "secret")
    target = {"absolute": tmp_path / "secret", "relative": os.path.relpath(tmp_path / "secret", file.parent)}
    file.symlink_to(target.get(by, folder / "between"))
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        read_beside(folder, name)
    readers: list[Callable[[], object]] = [lambda: wo.open(folder).save(tmp_path / "out", progress=False)]
    if name == "guard.json":
        readers = [lambda: GuardCard.read(folder)]
    elif name in ("vocab.txt", "additional_chat_templates/x.jinja"):
        readers.append(lambda: tokenizer_files(folder))
    for read in readers:
        with pytest.raises(WeightopsError, match="a link out of its folder"):
            read()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_link_inside_a_model_folder_is_refused_too(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        carried_files(folder)


def test_links_inside_the_folder_and_to_a_folder_are_followed(folder, tmp_path):
    (folder / "NOTICE").symlink_to("config.json")
    (tmp_path / "alias").symlink_to(folder)
    assert carried_files(tmp_path / "alias")["NOTICE"] == (folder / "config.json").read_bytes()


def test_the_blobs_of_the_hub_cache_are_fine_and_those_of_another_repository_are_not(folder, tmp_path):
    """snapshots/REVISION/FILE -> ../../blobs/DIGEST, as huggingface_hub lays it out."""
    for repository in ("mine", "other"):
        (tmp_path / repository / "blobs").mkdir(parents=True)
    snapshot = tmp_path / "mine/snapshots/abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / "mine/blobs" / str(number)
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    wo.open(snapshot).save(tmp_path / "out", progress=False)
    assert (tmp_path / "out/tokenizer.json").exists()
    (tmp_path / "other/blobs/0").write_text("{}")
    (snapshot / "LICENSE").symlink_to("../../../other/blobs/0")
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        carried_files(snapshot)


def test_a_circle_of_links_is_one_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises((WeightopsError, OSError)):
        read_beside(tmp_path, "a")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "notes.txt"])
def test_links_of_a_pickled_folder_are_refused(name, folder, tmp_path):
    import torch

    torch.save(tiny.llama(0, layers=1), tmp_path / "elsewhere.bin")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.llama(0, layers=1), folder / "pytorch_model.bin")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        wo.open(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"\\uDCff": 1}', "half a surrogate pair"),
        ('{"a": 1' + "0" * 100 + "}", "a number has 101 digits"),
        ('{"a": 1' + "0" * 5000 + "}", "a number has 5001 digits"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": [' + "[]," * 1_500_000 + "[]]}", "more than 2000000 values"),
    ],
    ids=["half a pair", "half a pair as a key", "digits", "more digits", "deep", "many"],
)
def test_json_that_could_not_be_written_or_would_take_much_memory_is_refused(text, says, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightopsError, match=says) as caught:
        read_json(tmp_path / "config.json")
    assert len(str(caught.value)) < 500


def test_what_transformers_writes_for_no_limit_is_read(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"model_max_length": int(1e30), "emoji": "\U0001f600"}))
    assert read_json(tmp_path / "x.json") == {"model_max_length": int(1e30), "emoji": "\U0001f600"}


def test_an_index_of_150000_tensors_is_within_the_bounds(tmp_path):
    names = {f"model.layers.60.mlp.experts.{n}.down_proj.weight_scale_inv": f"model-{n % 99:05d}-of-00099.safetensors"
             for n in range(150_000)}  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps({"weight_map": names}, indent=2))
    assert (tmp_path / "x.json").stat().st_size < MOST_TEXT
    assert len(read_json(tmp_path / "x.json")["weight_map"]) == 150_000


def test_inside_returns_the_path_as_it_was_given(tmp_path):
    (tmp_path / "x").write_text("")
    assert inside(tmp_path / "x", tmp_path) == tmp_path / "x"
    assert stored_tensors(tiny.write(tmp_path / "m", tiny.llama(0, layers=1)))
