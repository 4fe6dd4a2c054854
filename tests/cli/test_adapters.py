"""``weightops adapters`` and ``weightops average`` from the command line: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner, Result
from tiny_adapters import assert_same_products, products

from weightops.cli import main

NAMES = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two adapters of org/base."""
    folders = [tiny.lora(tmp_path / name, tiny.llama(0), NAMES, seed) for seed, name in enumerate("ab")]
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    return folders


def test_merge_writes_an_adapter_that_verify_accepts(parts, tmp_path):
    out = tmp_path / "out"
    done = run("adapters", "merge", *parts, "--weights", "3,1", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.output
    first, second = (products(part) for part in parts)
    assert_same_products({name: 0.75 * first[name] + 0.25 * second[name] for name in NAMES}, products(out))
    assert run("verify", out).exit_code == 0


def test_merge_as_json_with_a_method_and_a_rank(parts, tmp_path):
    out = tmp_path / "out"
    done = run("adapters", "merge", *parts, "--method", "dare_ties", "--set", "density=0.5", "--set", "weight=1,0.5",
               "--rank", 2, "--dtype", "bfloat16", "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["targets"] == 2
    assert result["bytes"] == (out / "adapter_model.safetensors").stat().st_size
    recipe = json.loads((out / "weightops.json").read_text())["recipe"]
    assert recipe["settings"] == {"density": 0.5, "weight": [1.0, 0.5]}
    config = json.loads((out / "adapter_config.json").read_text())
    assert max(config["r"], *config["rank_pattern"].values(), 1) <= 2


def test_a_dry_run_writes_nothing_and_says_what_is_in_the_way(parts, tmp_path):
    out = tmp_path / "out"
    done = run("adapters", "merge", *parts, "--rank", 99, "--out", out, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "2 tensors, rank at most 4" in done.output
    assert "note: rank 99 is more than the merged updates have" in done.output
    assert not out.exists()
    out.mkdir()
    (out / "precious.txt").write_text("x")
    blocked = run("adapters", "merge", *parts, "--out", out, "--dry-run", "--json")
    assert blocked.exit_code == 1
    assert "--overwrite" in json.loads(blocked.stdout)["problems"][0]
    assert run("adapters", "merge", *parts, "--out", out, "--dry-run").stdout == ""


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--method", "ties", "--space", "product"], "--space core"),
        (["--method", "karcher"], "choose another --method"),
        (["--weights", "tokens"], "give the --weights yourself"),
        (["--set", "density"], "'density' is not KEY=VALUE"),
        (["--set", "densty=1", "--method", "ties"], "did you mean 'density'?"),
        (["--weights", "1,x"], "weights '1,x'"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_problems_name_the_options(args, problem, parts, tmp_path):
    done = run("adapters", "merge", *parts, *args, "--out", tmp_path / "out")
    assert done.exit_code in (1, 2)
    assert problem in done.output
    assert "bug in weightops" not in done.output
    assert not (tmp_path / "out").exists()


def test_nothing_named_is_a_line(tmp_path):
    for command, problem in ((["adapters", "merge"], "no adapters to merge"), (["average"], "no checkpoints")):
        done = run(*command, "--out", tmp_path / "out")
        assert done.exit_code == 1
        assert done.output.startswith(f"error: {problem}")


def test_extract_prints_what_the_adapter_holds_by_part(tmp_path):
    base, tuned = tiny.llama(0), tiny.perturbed(tiny.llama(0), 1)
    folders = [tiny.write(tmp_path / name, each) for name, each in (("base", base), ("tuned", tuned))]
    done = run("adapters", "extract", *folders, "--rank", 4, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "the adapter holds" in done.output
    assert any(line.split()[:3] == ["norm", "5", "0"] for line in done.output.splitlines()), done.output
    assert f"next: weightops inspect {tmp_path / 'out'}\n" in done.stderr
    assert "14" in run("inspect", tmp_path / "out").stdout
    again = run("adapters", "extract", *folders, "--energy", 0.9, "--out", tmp_path / "out", "--overwrite", "--json")
    result = json.loads(again.stdout)
    assert {part["part"] for part in result["parts"]} == {"norm", "head", "embedding", "attention", "mlp"}
    assert all(part["share"] >= 0.9 - 1e-5 for part in result["parts"] if part["extracted"])
    assert run("verify", tmp_path / "out").exit_code == 0
    dry = run("adapters", "extract", *folders, "--rank", 4, "--out", tmp_path / "dry", "--dry-run")
    assert "14 tensors, rank at most 4" in dry.output
    assert not (tmp_path / "dry").exists()


def test_extract_without_a_rank_names_the_options(tmp_path):
    folder = tiny.write(tmp_path / "m", tiny.llama(0))
    done = run("adapters", "extract", folder, folder, "--out", tmp_path / "out")
    assert "give --rank, or give --energy" in done.output
    assert done.exit_code == 1


def test_average_prints_the_weights(tmp_path):
    run_ = [tiny.write(tmp_path / f"c{i}", tiny.perturbed(tiny.llama(0), i)) for i in range(2)]
    dry = run("average", *run_, "--decay", "1-sqrt", "--out", tmp_path / "out", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "0.292893" in dry.output
    done = run("average", *run_, "--decay", "uniform", "--out", tmp_path / "out", "--json")
    result = json.loads(done.stdout)
    assert result["weights"] == [0.5, 0.5]
    assert result["checkpoints"] == [str(folder) for folder in run_]
    card = (tmp_path / "out/README.md").read_text()
    assert "Averaged checkpoints" in card
    assert run("verify", tmp_path / "out").exit_code == 0
