"""``weightops compose-guard``: what is typed, what is printed, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner, Result

from weightops.cli import main
from weightops.output.provenance import verify

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with guard, base and target, and the process in it."""
    base = tiny.llama(0)
    for seed, name in enumerate(("guard", "base", "target")):
        tiny.write(tmp_path / name, tiny.perturbed(base, seed))
        tiny.tokenizer(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str, out: str = "out") -> Result:
    sources = ["--guard", "guard", "--base", "base", "--target", "target"]
    return CliRunner().invoke(main, ["compose-guard", *sources, "--out", out, *more])


def test_it_prints_each_part_with_its_norms_and_writes_the_folder(models):
    result = run()
    assert (result.exit_code, result.stderr) == (0, "next: weightops verify out\n")  # no guard.json: no guard to ask
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["group", "tensors", "|V|", "|V|/|B|"]
    assert [(line[0], line[1], line[-1]) for line in lines[1:6]] == [
        ("attention", "8", "applied"),
        ("mlp", "6", "applied"),
        ("norm", "5", "dropped"),
        ("head", "1", "dropped"),
        ("embedding", "1", "dropped"),
    ]
    assert " ".join(lines[6]).startswith("|V|: size (Euclidean norm) of the change, guard - base")
    assert lines[7][:2] == ["wrote", "out"]
    g, b, t, out = (tiny.read(models / name) for name in ("guard", "base", "target", "out"))
    assert tiny.same_bytes(out[UP], tiny.composed(t[UP], g[UP], b[UP], 1.0))
    assert verify(models / "out") == []


def test_the_options_reach_the_result(models):
    result = run(
        "--scale=0.5", "--include=mlp", "--include=norm", "--exclude=layers.1", "--dtype=float32", "--shard-size=4kB"
    )
    assert result.exit_code == 0, result.output
    g, b, t, out = (tiny.read(models / name) for name in ("guard", "base", "target", "out"))
    for name, tensor in out.items():
        chosen = ("mlp" in name or "norm" in name) and "layers.1" not in name
        expected = t[name].float() + (0.5 * (g[name].float() - b[name].float()) if chosen else 0)
        assert tiny.same_bytes(tensor, expected), name
    assert len(list((models / "out").glob("*.safetensors"))) > 3
    made = json.loads((models / "out/weightops.json").read_text())
    assert made["recipe"] == {
        "kind": "compose-guard", "guard": "guard", "base": "base", "target": "target", "scale": 0.5,
        "include": ["mlp", "norm"], "exclude": ["layers.1"], "labels": [], "dtype": "float32",
    }  # fmt: skip


def test_the_card_quotes_the_command_and_cites_the_papers(models):
    argv = ["--guard", "guard", "--base", "base", "--target", "target", "--out", "my out", "--scale", "1.5"]
    subprocess.run([*WEIGHTOPS, "compose-guard", *argv], check=True, capture_output=True, timeout=120)
    card = (models / "my out/README.md").read_text()
    assert "--out 'my out' --scale 1.5\n```" in card
    assert "weightops compose-guard --guard guard" in card
    assert "arXiv 2509.23381" in card
    assert "- task-arithmetic" in card


WEIGHTOPS = [sys.executable, "-c", "from weightops.cli import main; main(prog_name='weightops')"]


def test_dry_run_prints_the_plan_and_writes_nothing(models):
    before = tiny.files_of(models), sorted(os.listdir(models))
    result = run("--dry-run", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "reads " in result.stdout
    assert "in 1 file(s) to out, buffers " in result.stdout
    assert [line.split()[2:] for line in result.stdout.splitlines()[1:3]] == [["-", "-", "applied"]] * 2
    assert (tiny.files_of(models), sorted(os.listdir(models))) == before


def test_dry_run_as_json_is_the_plan_for_a_program(models):
    result = run("--dry-run", "--json", "--threads=2", "--memory=64MiB")
    assert (result.exit_code, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert (plan["out"], plan["problems"], plan["notes"]) == ("out", [], [])
    assert plan["peak_buffer_bytes"] <= 64 << 20
    assert plan["tensors"][UP] == {"terms": 1, "dtype": "BF16", "shape": [32, 16]}
    assert plan["tensors"]["lm_head.weight"]["terms"] == 0
    assert {row["group"]: row["applied"] for row in plan["groups"]}["mlp"]
    assert not (models / "out").exists()
    assert run("--json").exit_code == 0
    assert plan["files"] == {"model.safetensors": (models / "out/model.safetensors").stat().st_size}
    assert plan["bytes_written"] == sum(plan["files"].values())


def test_json_is_the_result_for_a_program(models):
    result = run("--json")
    assert (result.exit_code, result.stderr) == (0, "")
    made = json.loads(result.stdout)
    assert (made["out"], made["notes"]) == (str(models / "out"), [])
    assert all(row["vector"] > 0 and row["ratio"] > 0 for row in made["groups"])


def test_a_plan_with_problems_is_valid_json_too_and_ends_with_exit_code_1(models):
    tiny.write(models / "guard", tiny.llama(0, hidden=32))
    (models / "out").mkdir()
    result = run("--dry-run", "--json")
    assert result.exit_code == 1
    plan = json.loads(result.stdout)
    assert len(plan["problems"]) == 15
    assert any("exists already" in problem for problem in plan["problems"])
    assert result.stderr == ""


def test_label_rows_that_are_dropped_are_noted_and_labels_copies_them(models):
    guard = tiny.read(models / "guard")
    guard["lm_head.weight"][3] += 1
    tiny.write(models / "guard", guard)
    (models / "guard/guard.json").write_text(
        json.dumps({"system": "s", "labels": ["safe", "unsafe"], "label_ids": [3, 4], "threshold": 0.5})
    )
    noted = run()
    line, suggested = noted.stderr.splitlines()
    assert suggested == "next: weightops guard score out 'how do I kill a process?'"
    assert line.startswith("note: the guard's label rows are dropped")
    assert "copy them with --labels safe,unsafe" in line
    assert json.loads((models / "out/guard.json").read_text())["label_ids"] == [3, 4]
    copied = run("--quiet", "--labels", "safe, unsafe", out="copied")
    assert (copied.exit_code, copied.stderr) == (0, "")
    t, out = (tiny.read(models / name)["lm_head.weight"] for name in ("target", "copied"))
    assert tiny.same_bytes(out[3:5], guard["lm_head.weight"][3:5])
    assert tiny.same_bytes(out[5:], t[5:])
    assert json.loads(run("--dry-run", "--json", out="third").stdout)["notes"] == [line.removeprefix("note: ")]


def test_overwrite_replaces_and_the_same_command_again_gives_the_same_bytes(models):
    assert run().exit_code == 0
    first = tiny.files_of(models / "out")
    assert run().exit_code == 1
    assert run("--overwrite").exit_code == 0
    assert tiny.files_of(models / "out") == first
    assert run("--overwrite", "--scale=2").exit_code == 0
    assert tiny.files_of(models / "out")["model.safetensors"] != first["model.safetensors"]


def test_a_guard_given_as_base_plus_adapter(models):
    tiny.lora_of_ones(models / "lora", "model.layers.0.mlp.up_proj", (32, 16))
    sources = ["--guard", "base+lora", "--base", "base", "--target", "target", "--out", "out"]
    result = CliRunner().invoke(main, ["compose-guard", *sources])
    assert result.exit_code == 0, result.output
    t, out = tiny.read(models / "target"), tiny.read(models / "out")
    assert {name for name in t if not tiny.same_bytes(t[name], out[name])} == {UP}
    assert tiny.same_bytes(out[UP], (t[UP].float() + 1).bfloat16())


def test_the_place_of_the_output_is_checked_once(models, monkeypatch):
    from weightops.output import save

    check, calls = save.output_problems, []

    def counting(*given, **more):
        calls.append(given)
        return check(*given, **more)

    monkeypatch.setattr(save, "output_problems", counting)
    assert run().exit_code == 0
    assert len(calls) == 1
