"""A folder is a table of tensors; an index is a claim about it, and never leads out of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io.folder import INDEX, plain_file, read_json, stored_tensors


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in three shards."""
    return tiny.write(tmp_path / "model", tiny.llama(0), shards=3)


def edit_index(folder: Path, **placed: object) -> None:
    """Other shard names for some tensors."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update(placed)
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_together_hold_what_one_file_holds(sharded, tmp_path):
    whole = stored_tensors(tiny.write(tmp_path / "whole", tiny.llama(0)))
    split = stored_tensors(sharded)
    assert {n: (t.dtype, t.shape) for n, t in split.items()} == {n: (t.dtype, t.shape) for n, t in whole.items()}
    assert len({tensor.file for tensor in split.values()}) == 3


def test_a_single_file_goes_before_an_index_as_in_transformers(sharded):
    tiny.write(sharded, tiny.llama(1, layers=1))
    assert len(stored_tensors(sharded)) == len(tiny.llama(1, layers=1))


def test_one_safetensors_file_of_any_name_is_the_model(tmp_path):
    folder = tiny.write(tmp_path / "model", tiny.llama(0))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len(stored_tensors(folder)) == len(tiny.llama(0))


@pytest.mark.parametrize("files", [0, 2])
def test_no_weights_or_several_without_an_index_are_an_error(files, tmp_path):
    for number in range(files):
        tiny.write(tmp_path / str(number), tiny.llama(0))
        (tmp_path / str(number) / "model.safetensors").rename(tmp_path / f"{number}.safetensors")
    with pytest.raises(WeightopsError, match="no .safetensors weights" if not files else "2 .safetensors files and no"):
        stored_tensors(tmp_path)


def test_every_missing_shard_is_named_at_once(sharded):
    for number in (1, 3):
        (sharded / f"model-0000{number}-of-00003.safetensors").unlink()
    with pytest.raises(WeightopsError) as caught:
        stored_tensors(sharded)
    one, three = caught.value.problems
    assert "model-00001-of-00003.safetensors: missing, but" in one
    assert "model-00003-of-00003.safetensors: missing, but" in three


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\\b.safetensors",
        "a\0b",
        7,
        None,
    ],
    ids=repr,
)
def test_a_shard_name_that_is_no_plain_file_name_is_refused(name, sharded):
    edit_index(sharded, **{"model.norm.weight": name})
    text = "is not a plain file name; refusing" if isinstance(name, str) else "no weight_map from tensor names"
    with pytest.raises(WeightopsError, match=text) as caught:
        stored_tensors(sharded)
    assert str(sharded / INDEX) in str(caught.value)


def test_a_shard_name_too_long_for_a_file_is_an_error_of_one_line(sharded):
    edit_index(sharded, **{"model.norm.weight": "x" * 5000})
    with pytest.raises(WeightopsError, match=rf"^{sharded}/x+.*(missing|cannot be read)"):
        stored_tensors(sharded)


@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(through, sharded, tmp_path):
    outside = tiny.write(tmp_path / "outside", tiny.llama(0))
    link = sharded / "linked.safetensors"
    if through == "file":
        link.symlink_to(outside / "model.safetensors")
    else:
        (sharded / "hop").symlink_to(outside)
        link.symlink_to(sharded / "hop" / "model.safetensors")
    edit_index(sharded, **{"model.norm.weight": link.name})
    with pytest.raises(WeightopsError, match="linked.safetensors: a link out of its folder"):
        stored_tensors(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "alone.safetensors"])
def test_a_single_file_that_links_out_of_the_folder_is_refused_too(name, tmp_path):
    outside = tiny.write(tmp_path / "outside", tiny.llama(0))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).symlink_to(outside / "model.safetensors")
    with pytest.raises(WeightopsError, match="a link out of its folder"):
        stored_tensors(folder)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(sharded, tmp_path):
    shard = sharded / "model-00001-of-00003.safetensors"
    shard.rename(sharded / "real.safetensors")
    shard.symlink_to("real.safetensors")
    (tmp_path / "elsewhere").symlink_to(sharded)
    assert len(stored_tensors(tmp_path / "elsewhere")) == len(tiny.llama(0))


def test_a_shard_that_is_a_folder_is_refused(sharded):
    (sharded / "folder.safetensors").mkdir()
    edit_index(sharded, **{"model.norm.weight": "folder.safetensors"})
    with pytest.raises(WeightopsError, match="folder.safetensors: not a file"):
        stored_tensors(sharded)


def test_an_index_that_names_a_tensor_its_shard_does_not_have_is_refused(sharded):
    edit_index(sharded, ghost="model-00002-of-00003.safetensors", spirit="model-00002-of-00003.safetensors")
    with pytest.raises(WeightopsError, match=rf"{INDEX}: ghost is not in model-00002.*\(and 1 more\)"):
        stored_tensors(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "\xff", "[" * 100_000])
def test_a_broken_index_is_an_error_that_names_it(text, sharded):
    (sharded / INDEX).write_text(text, "latin-1")
    with pytest.raises(WeightopsError) as caught:
        stored_tensors(sharded)
    assert str(sharded / INDEX) in str(caught.value)


def test_a_broken_config_is_an_error_that_names_it(sharded):
    (sharded / "config.json").write_text("{")
    with pytest.raises(WeightopsError, match="config.json: not valid JSON"):
        wo.open(sharded)
    assert read_json(sharded / "nothing.json") == {}


def test_a_plain_file_is_given_as_it_is(sharded):
    assert plain_file(sharded, "config.json") == sharded / "config.json"
