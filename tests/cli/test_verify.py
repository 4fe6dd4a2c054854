"""``weightops verify`` finds a flipped byte; ``weightops inspect`` lists what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner

import weightops as wo
from weightops.cli import main
from weightops.io.safetensors import read_header


@pytest.fixture
def out(tmp_path: Path) -> Path:
    base = tiny.llama(0)
    a, b = (wo.open(tiny.write(tmp_path / f"m{n}", tiny.perturbed(base, n))) for n in range(2))
    return (a + (b - a)).save(tmp_path / "out", progress=False)


def run(*args: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_a_whole_output_is_verified(out):
    result = run("verify", out)
    assert (result.exit_code, result.stderr) == (0, f"next: weightops inspect {out}\n")
    assert result.stdout == f"{out}: every tensor and every file is as it was written\n"


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_flipped_byte_is_found_and_named(name, out):
    file = out / "model.safetensors"
    (tensor,) = (tensor for tensor in read_header(file).tensors if tensor.name == name)
    raw = bytearray(file.read_bytes())
    raw[tensor.offset + tensor.nbytes // 2] ^= 0x10
    file.write_bytes(raw)
    result = run("verify", out)
    assert result.exit_code == 1
    assert result.stderr == f"error: {file}: {name}: its bytes, dtype or shape have changed since it was written\n"


def test_a_byte_lost_at_the_end_is_found(out):
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = run("verify", out)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(file) in result.stderr


def test_a_record_without_digests_of_files_still_verifies_and_says_what_it_does_not_hold(out):
    made = json.loads((out / "weightops.json").read_text())
    (out / "weightops.json").write_text(json.dumps({**made, "files": sorted(made["files"])}))
    (out / "config.json").write_text("{}")
    result = run("verify", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}: every tensor is as it was written\n")
    assert "holds no digests of the other files" in result.stderr.splitlines()[0]
    assert json.loads(run("verify", out, "--json").stdout)["files_checked"] is False


def test_what_weightops_did_not_write_cannot_be_verified(tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.llama(0))
    result = run("verify", folder)
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: {folder}: no weightops.json with output digests; only outputs of weightops can be verified\n"
    )
    assert run("verify", tmp_path / "nowhere").exit_code == 2


def test_inspect_lists_the_parts_of_a_model(tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.llama(0) | {"model.norm.weight": torch.ones(16)})
    result = run("inspect", folder)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:]}
    assert rows["attention"] == ["8", "2,048", "4.1", "kB", "BF16"]
    assert rows["norm"] == ["5", "80", "192", "B", "BF16,F32"]
    assert set(rows) == {"attention", "mlp", "norm", "embedding", "head"}


def test_inspect_as_json_lists_every_tensor(tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.llama(0), shards=3)
    listed = json.loads(run("inspect", folder, "--json").stdout)
    assert set(listed) == set(tiny.llama(0))
    assert listed["lm_head.weight"]["shape"] == [24, 16]
    assert listed["lm_head.weight"]["dtype"] == "BF16"
    assert Path(listed["lm_head.weight"]["file"]).parent == folder
