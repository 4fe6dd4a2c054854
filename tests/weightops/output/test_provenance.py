"""The record says what an output was made of, and finds whatever has changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from weightops.engine.exact_reads import read_tensor
from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError
from weightops.io.safetensors import read_header
from weightops.output.provenance import content, record_again, verify
from weightops.version import __version__


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output: m0 + 0.5 * (m1 - m0)."""
    base = tiny.llama(0)
    a, b = (wo.open(tiny.write(tmp_path / f"m{n}", tiny.perturbed(base, n))) for n in range(2))
    return (a + 0.5 * (b - a)).save(tmp_path / "out", progress=False)


def rewrite(out: Path, tensors: tiny.Tensors, *, shards: int = 1) -> None:
    """Other weights in the folder, all else as it was."""
    config = (out / "config.json").read_bytes()
    tiny.write(out, tensors, shards=shards)
    (out / "config.json").write_bytes(config)


def test_the_record_holds_recipe_sources_version_and_outputs(out, tmp_path):
    made = json.loads((out / "weightops.json").read_text())
    assert made["weightops"] == __version__
    assert made["recipe"] == {
        "kind": "affine",
        "anchor": str(tmp_path / "m0"),
        "changes": [{"plus": str(tmp_path / "m1"), "minus": str(tmp_path / "m0"), "coefficient": 0.5, "rules": []}],
        "dtype": "auto",
    }
    for entry in made["sources"]:
        tensors = wo.open(entry["name"]).source.tensors.values()
        assert entry["tensors"] == len(tensors)
        assert entry["content"] == content({tensor: tensor_digest(tensor) for tensor in tensors})
    tensors = wo.open(out).source.tensors
    assert made["outputs"] == {n: f"{t.dtype} {list(t.shape)} {tensor_digest(t)}" for n, t in sorted(tensors.items())}
    assert verify(out) == []


def test_any_flipped_byte_of_the_weights_is_found(out):
    file = out / "model.safetensors"
    whole = file.read_bytes()
    for tensor in read_header(file).tensors:
        for at in (tensor.offset, tensor.offset + tensor.nbytes - 1):
            broken = bytearray(whole)
            broken[at] ^= 1
            file.write_bytes(broken)
            (fault,) = verify(out)
            assert fault == f"{file}: {tensor.name}: its bytes, dtype or shape have changed since it was written"
    file.write_bytes(whole)
    assert verify(out) == []


def test_a_header_that_calls_the_same_bytes_something_else_is_found(out):
    tensors = tiny.read(out)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].view(torch.float16)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].reshape(16, 24)
    rewrite(out, tensors)
    assert [fault.split(": ")[1] for fault in verify(out)] == ["lm_head.weight", "model.embed_tokens.weight"]


def test_missing_and_extra_tensors_are_found(out):
    tensors = tiny.read(out)
    tensors["extra"] = tensors.pop("lm_head.weight")
    rewrite(out, tensors)
    assert verify(out) == [
        "lm_head.weight: is in the record but not in the folder",
        "extra: is in the folder but not in the record",
    ]


def test_what_stands_in_other_files_than_it_was_written_to_is_the_same_output(out):
    tensors = tiny.read(out)
    (out / "model.safetensors").unlink()
    rewrite(out, tensors, shards=3)
    assert verify(out) == []


def test_small_files_that_change_or_go_are_found_and_added_ones_are_not_asked_about(out):
    assert {"config.json", "README.md"} <= json.loads((out / "weightops.json").read_text())["files"].keys()
    (out / "config.json").write_bytes((out / "config.json").read_bytes() + b" ")
    (out / "README.md").unlink()
    (out / "notes.txt").write_text("mine")
    assert verify(out) == [
        f"{out / 'README.md'}: is in the record but not in the folder",
        f"{out / 'config.json'}: has changed since it was written",
    ]
    (out / "config.json").unlink()
    (out / "config.json").symlink_to("/etc/hostname")
    assert "a link out of its folder" in verify(out)[1]


def test_a_file_that_weightops_changes_is_recorded_again(out):
    (out / "config.json").write_text("{}")
    record_again(out, "config.json")
    assert verify(out) == []


@pytest.mark.parametrize("name", ["../m0/config.json", "/etc/hostname", "a\0b", "x" * 300])
def test_names_in_a_record_lead_to_no_other_file(name, out):
    made = json.loads((out / "weightops.json").read_text())
    (out / "weightops.json").write_text(json.dumps({**made, "files": {name: "blake3:00"}}))
    (problem,) = verify(out)
    assert "has changed" not in problem


@pytest.mark.parametrize("text", [None, "{}", '{"outputs": []}'])
def test_without_a_record_there_is_nothing_to_verify(text, out):
    (out / "weightops.json").unlink()
    if text is not None:
        (out / "weightops.json").write_text(text)
    with pytest.raises(WeightopsError, match="no weightops.json with output digests"):
        verify(out)


def test_content_depends_on_names_dtypes_shapes_and_bytes_and_not_on_files(tmp_path):
    def of(folder: str, tensors: tiny.Tensors, shards: int = 1) -> str:
        stored = wo.open(tiny.write(tmp_path / folder, tensors, shards=shards)).source.tensors.values()
        return content({tensor: tensor_digest(tensor) for tensor in stored})

    x, y = torch.arange(6.0), torch.ones(3)
    first = of("first", {"x": x, "y": y})
    assert of("again", {"y": y, "x": x}, shards=2) == first
    others = [
        {"x": x, "z": y},
        {"x": x.reshape(2, 3), "y": y},
        {"x": x.view(torch.int32), "y": y},
        {"x": x + 1, "y": y},
    ]
    assert len({first, *(of(str(n), tensors) for n, tensors in enumerate(others))}) == 5


def test_a_row_is_read_as_it_lies(tmp_path):
    tensors = tiny.llama(0)
    stored = wo.open(tiny.write(tmp_path / "m", tensors)).source.tensors["lm_head.weight"]
    for row in (0, 7, 23):
        wanted = tensors["lm_head.weight"][row].contiguous().view(torch.uint8).numpy()
        assert read_tensor(stored, row * stored.shape[1], stored.shape[1]).tobytes() == wanted.tobytes()


def test_an_adapter_is_a_source_with_content_too(tmp_path):
    base = wo.open(tiny.write(tmp_path / "m", tiny.llama(0)))
    tiny.lora_of_ones(tmp_path / "lora", "model.layers.0.self_attn.q_proj", (16, 16), rank=2, lora_alpha=2)
    out = (base + wo.open_adapter(tmp_path / "lora")).save(tmp_path / "out", progress=False)
    made = json.loads((out / "weightops.json").read_text())
    assert [source["name"] for source in made["sources"]] == [str(tmp_path / "m"), str(tmp_path / "lora")]
    stored = read_header(tmp_path / "lora/adapter_model.safetensors").tensors
    assert made["sources"][1]["tensors"] == 2
    assert made["sources"][1]["content"] == content({tensor: tensor_digest(tensor) for tensor in stored})
