"""``weightops sparse`` and ``compose-guard --sparse``: what is typed, what is printed, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner, Result

import weightops as wo
from weightops.cli import main
from weightops.output.provenance import verify

UP = "model.layers.0.mlp.up_proj.weight"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, a tuned model and another base, and the process in it."""
    base = tiny.llama(0)
    for name, tensors in {"base": base, "tuned": tiny.perturbed(base, 3), "other": tiny.llama(5)}.items():
        tiny.write(tmp_path / name, tensors)
        tiny.tokenizer(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_extract_apply_info_revert(models):
    done = run("sparse", "extract", "base", "tuned", "--density", 0.05, "--originals", "--out", "d.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("wrote d.safetensors (")
    assert done.stdout.endswith(": 289 entries of 21 tensors\n")
    assert "next: weightops sparse info d.safetensors" in done.stderr
    shown = run("sparse", "info", "d.safetensors").stdout.splitlines()
    assert shown[0].split() == ["part", "tensors", "entries", "density", "norm"]
    assert [line.split()[:3] for line in shown[1:6]][-1] == ["mlp", "6", "150"]
    assert shown[-2].endswith("adds to base")
    assert shown[-1] == "can be reverted"
    told = json.loads(run("sparse", "info", "d.safetensors", "--json").stdout)
    assert (told["entries"], told["revertible"], told["made"]["recipe"]["density"]) == (289, True, 0.05)
    assert run("sparse", "apply", "base", "d.safetensors", "--out", "model").exit_code == 0
    assert verify(models / "model") == []
    assert run("sparse", "revert", "model", "d.safetensors", "--out", "back").exit_code == 0
    assert (models / "back/model.safetensors").read_bytes() == (models / "base/model.safetensors").read_bytes()


def test_a_dry_run_writes_nothing_and_names_the_problems(models):
    before = tiny.files_of(models)
    planned = run(
        "sparse", "extract", "base", "tuned", "--density", 0.05, "--global", "--out", "d.safetensors", "--dry-run"
    )
    assert planned.stdout == "21 tensors; at most 298 entries to d.safetensors\n"
    wrong = run("sparse", "extract", "base", "tuned", "--exact", "--out", "d.bin", "--dry-run", "--json")
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)["problems"] == ["d.bin: a delta is a .safetensors file; choose a name that ends so"]
    assert tiny.files_of(models) == before


def test_another_base_is_refused_in_one_line(models):
    run("sparse", "extract", "base", "tuned", "--density", 0.05, "--out", "d.safetensors")
    refused = run("sparse", "apply", "other", "d.safetensors", "--out", "model")
    assert refused.exit_code == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: d.safetensors: ")
    assert "was made for another base" in line
    assert not (models / "model").exists()


def test_how_much_to_keep_must_be_said_in_the_words_of_the_options(models):
    refused = run("sparse", "extract", "base", "tuned", "--out", "d.safetensors")
    assert refused.stderr == "error: no density for the delta; give --density, or give --exact\n"


def test_merge_export_and_import(models):
    for name, seed in (("a", 1), ("b", 2)):
        tiny.write(models / "more", tiny.perturbed(tiny.llama(0), seed))
        done = run("sparse", "extract", "base", "more", "--density", 0.1, "--exclude", "embed|norm|head", "--out", f"{name}.safetensors")  # fmt: skip
        assert done.exit_code == 0, done.output
    merged = run("sparse", "merge", "a.safetensors", "b.safetensors", "--method", "ties", "--weights", "1,0.5", "--out", "ab.safetensors", "--json")  # fmt: skip
    assert merged.exit_code == 0, merged.output
    assert json.loads(merged.stdout)["tensors"] == 14
    export, import_ = ("sparse", "export", "ab.safetensors", "--out", "adapter"), ("sparse", "import", "adapter", "--base", "base", "--out", "back.safetensors")  # fmt: skip
    entries = wo.open("base+ab.safetensors").delta.changes[0].of.entries
    planned = run(*export, "--dry-run")
    assert planned.stdout == f"14 tensors; at most {entries} entries to adapter\n"
    assert not Path("adapter").exists()
    assert run(*export).exit_code == 0
    assert run(*export, "--dry-run").stderr.startswith("error: adapter: exists already")
    assert json.loads(run(*import_, "--dry-run", "--json").stdout)["tensors"] == 14
    assert not Path("back.safetensors").exists()
    back = run(*import_)
    assert back.exit_code == 0, back.output
    one, two = (wo.open(f"base+{name}.safetensors").tensor(UP) for name in ("ab", "back"))
    assert torch.equal(one, two)
    wrong = run("sparse", "merge", "a.safetensors", "--weights", "x", "--out", "c.safetensors")
    assert wrong.exit_code == 2


def compose(*more: object) -> Result:
    return run("compose-guard", "--guard", "tuned", "--base", "base", "--target", "other", *more)


def test_a_sparse_guard_vector_is_composed_or_written(models):
    (models / "tuned/guard.json").write_text(json.dumps({"labels": ["safe", "unsafe"], "label_ids": [3, 4], "threshold": 0.5, "system": "x"}))  # fmt: skip
    planned = compose("--sparse", 0.1, "--delta-only", "--out", "vector", "--dry-run")
    assert planned.stdout == "14 tensors; at most 506 entries to vector\n", planned.output
    assert not Path("vector").exists()
    written = compose("--sparse", 0.1, "--delta-only", "--out", "vector")
    assert written.exit_code == 0, written.output
    assert sorted(path.name for path in Path("vector").iterdir()) == ["delta.safetensors", "guard.json"]
    assert compose("--sparse", 0.1, "--delta-only", "--out", "vector", "--overwrite").exit_code == 0
    done = compose("--sparse", 0.1, "--out", "out")
    assert done.exit_code == 0, done.output
    assert (models / "out/guard.json").exists()
    out, other = tiny.read(models / "out"), tiny.read(models / "other")
    vector = wo.open("base+vector") - wo.open("base")
    assert vector.names == {name for name in other if not tiny.left_out(name)}
    by_hand = (wo.open("other") + vector).tensor(UP)
    assert torch.equal(out[UP], by_hand)
    changed = (out[UP] != other[UP]).float().mean()
    assert 0.05 < changed <= 0.1
    record = json.loads((models / "out/weightops.json").read_text())
    assert record["recipe"]["guard"] == "base+tuned at density 0.1"


def test_options_of_a_sparse_vector_that_do_not_fit_are_refused(models):
    for more in (
        ("--delta-only",),
        ("--sparse", 0.1, "--labels", "a,b"),
    ):
        assert compose(*more, "--out", "out").exit_code == 2
