"""``weightops soup``: each strategy is a command; what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import tiny_models as tiny
from click.testing import CliRunner, Result
from tiny_soup import family

from weightops.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("soup"))


@pytest.fixture(autouse=True)
def _there(models, monkeypatch):
    monkeypatch.chdir(models)


def run(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["soup", *map(str, args)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done


def test_greedy_writes_the_choice_and_shows_the_controls(tmp_path):
    out = tmp_path / "soup"
    args = ["greedy", "a", "b", "c", "--data", "dev.jsonl", "--out", out]
    assert not list(tmp_path.iterdir())
    planned = run(*args, "--dry-run")
    assert "judges at most 6 candidates" in planned.stdout
    assert not list(tmp_path.iterdir())
    done = run(*args)
    assert "mean of all 3" in done.stdout
    assert f"wrote {out}" in done.stdout
    assert "judge it once on other data: --report" in done.stderr
    assert f"next: weightops verify {out}" in done.stderr
    written = json.loads((out / "soup.json").read_text())
    assert written["strategy"] == "Greedy"
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0
    again = run(*args, "--overwrite", "--json", "--report", "test.jsonl")
    told = json.loads(again.stdout)
    assert told["chosen"] == written["chosen"]
    assert [one["candidate"] for one in told["reported"]][:4] == ["a", "b", "c", "mean of all 3"]
    assert f"were read from {out}-scores" in again.stderr
    assert "--report" not in again.stderr


def test_wise_ft_merges_as_its_soup_yml_does(tmp_path):
    out = tmp_path / "out"
    done = run("wise-ft", "a", "--base", "base", "--alphas", "0,0.3,1", "--data", "dev.jsonl", "--max-tokens", 8,
               "--out", out, "--scores", tmp_path / "kept")  # fmt: skip
    assert "base" in done.stdout
    merged = CliRunner().invoke(main, ["merge", str(out / "soup.yml"), str(tmp_path / "again")])
    assert merged.exit_code == 0, merged.output
    assert tiny.files_of(out)["model.safetensors"] == tiny.files_of(tmp_path / "again")["model.safetensors"]
    assert (tmp_path / "kept" / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["greedy", "a"], 1, "name more MODELS"),
        (["greedy", "a", "b", "a"], 1, "a: is listed twice"),
        (["greedy", "a", "nowhere"], 1, "nowhere: no such file or folder"),
        (["greedy", "a", "b"], 1, "no metric to choose by; name its files as --data"),
        (["greedy", "a", "b", "--data", "none.jsonl"], 1, "none.jsonl: cannot be read"),
        (["greedy", "a", "b", "--data", "dev.jsonl", "--metric", "f1"], 2, "held-out-loss"),
        (["greedy", "a", "b", "--data", "dev.jsonl", "--batch", "0"], 1, "batch must be at least 1; change --batch"),
        (["wise-ft", "a", "--data", "dev.jsonl"], 1, "no base model; name it as --base"),
        (["wise-ft", "a", "--base", "base", "--data", "dev.jsonl", "--alphas", "0;1"], 1, "change --alphas"),
        (["greddy", "a", "b"], 2, "did you mean greedy?"),
    ],
)
def test_bad_input_is_named_in_one_line(args, code, problem, tmp_path):
    done = run(*args, *(["--out", tmp_path / "out"] if "greddy" not in args else []), code=code)
    assert problem in done.stderr
    assert not list(tmp_path.iterdir())


EVOLVE = """\
genome: {models: [a, b], merge_method: task_arithmetic, base_model: base, layer_granularity: 1}
tasks: [a_task_of_nobody]
tsks: []
"""


def test_the_file_of_mergekit_evolve_runs_with_its_options_and_resumes(tmp_path):
    file, out = tmp_path / "evolve.yml", tmp_path / "out"
    file.write_text(EVOLVE)
    args = ["evolve", file, "--data", "dev.jsonl", "--max-fevals", 5, "--random-seed", 3, "--out", out]
    planned = run(*args, "--dry-run")
    assert "judges at most 9 candidates" in planned.stdout  # the base, two models, their mean
    assert "evolve.yml:3: unknown key 'tsks' has no effect (did you mean 'tasks'?)" in planned.stderr
    assert not out.exists()
    done = run(*args, "--vllm", "--storage-path", tmp_path / "store", "--report", "test.jsonl")
    assert "note: --vllm has no effect: transformers runs the candidates" in done.stderr
    assert "on --report" in done.stdout
    told = json.loads((out / "soup.json").read_text())
    assert (told["strategy"], told["settings"]["trials"], told["settings"]["seed"]) == ("Evolve", 5, 3)
    merged = CliRunner().invoke(main, ["merge", str(out / "soup.yml"), str(tmp_path / "again")])
    assert merged.exit_code == 0, merged.output
    assert tiny.files_of(out)["model.safetensors"] == tiny.files_of(tmp_path / "again")["model.safetensors"]
    again = run("evolve", file, "--data", "dev.jsonl", "--trials", 5, "--seed", 3, "--out", out, "--overwrite")
    assert "resumed: 9 of 9 scores were read" in again.stderr


@pytest.mark.slow
def test_a_killed_evolution_resumes_and_chooses_what_an_unbroken_one_chooses(models, tmp_path):
    (tmp_path / "evolve.yml").write_text(EVOLVE)
    program = [sys.executable, "-c", "import sys; from weightops.cli import main; main(sys.argv[1:])"]
    command = [*program, "soup", "evolve", str(tmp_path / "evolve.yml"), "--data", "dev.jsonl", "--trials", "40"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    scores = tmp_path / "killed-scores" / "scores.jsonl"
    process = subprocess.Popen([*command, "--out", tmp_path / "killed"], cwd=models, env=environment)
    try:
        limit = time.monotonic() + 120
        while not scores.exists() or scores.read_text().count("\n") < 7:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, "--out", tmp_path / name], cwd=models, env=environment, check=True)
    resumed, whole = (json.loads((tmp_path / name / "soup.json").read_text()) for name in ("killed", "whole"))
    assert resumed == whole
    resumed, whole = (tiny.files_of(tmp_path / name)["model.safetensors"] for name in ("killed", "whole"))
    assert resumed == whole


@pytest.mark.parametrize(
    ("text", "args", "code", "problem"),
    [
        (EVOLVE, ["--timeout", 60], 2, "--timeout: there is no limit of time: interrupt the search"),
        (EVOLVE, ["--trials", 3, "--max-fevals", 4], 2, "--max-fevals and --trials differ; give one of them"),
        (EVOLVE, ["--sigma0", 0, "--data", "dev.jsonl"], 1, "change --sigma0"),
        (EVOLVE, ["--plain"], 2, "--plain: the metric of FILE does not have it"),
        (EVOLVE.replace("a_task_of_nobody", ""), [], 1, "no metric to choose by; name its files as --data"),
        (EVOLVE.replace("layer_granularity: 1", "layer_granularity: 5"), ["--data", "dev.jsonl"], 1,
         "evolve.yml:1: 5 does not divide the 2 layers of a model"),
        ("merge_method: linear", [], 1, "evolve.yml:1: this is a merge file; run it with weightops merge"),
    ],
)  # fmt: skip
def test_bad_searches_are_named_in_one_line(text, args, code, problem, tmp_path):
    (tmp_path / "evolve.yml").write_text(text)
    done = run("evolve", tmp_path / "evolve.yml", *args, "--out", tmp_path / "out", code=code)
    assert problem in done.stderr
    assert len([line for line in done.stderr.splitlines() if "rror" in line]) == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_found_before_anything_is_judged(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    args = ["greedy", "a", "b", "--data", "dev.jsonl", "--out", tmp_path / "out"]
    assert "exists already" in run(*args, code=1).stderr
    assert "precious.txt" in run(*args, "--overwrite", code=1).stderr
    assert not (tmp_path / "out-scores").exists()
