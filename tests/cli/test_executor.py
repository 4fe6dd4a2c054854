"""``--executor ray`` on the command line: where it would compute, wrong combinations, and a run with a plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
from click.testing import CliRunner
from merge_files import family

from weightops.cli import main

PLUGIN = Path(__file__).parents[2] / "examples/my_method.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three models and a merge file in the current folder."""
    family(tmp_path, ["base", "a", "b"], layers=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("ties.yml").write_text("merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n  - model: b\n")
    return tmp_path


def run(*words: str, code: int = 0):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "ties.yml", "out"],
        ["compose-guard", "--guard", "a", "--base", "base", "--target", "b", "--out", "out"],
        ["average", "a", "b", "--out", "out"],
        ["extract", "base", "--layers", "1", "--out", "out"],
        ["layershuffle", "out", "-m", "a", "-m", "b"],
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_says_where_it_would_compute_and_connects_to_nothing(words, folder):
    where = ["--executor", "ray", "--workers", "3", "--ray-address", "127.0.0.1:1"]
    assert "computed by 3 worker(s) of the Ray cluster at 127.0.0.1:1" in run(*words, "--dry-run", *where).stdout
    assert "computed by" not in run(*words, "--dry-run").stdout
    assert not Path("out").exists()


def test_a_dry_run_says_it_to_programs_too(folder):
    plan = json.loads(run("merge", "ties.yml", "out", "--dry-run", "--json", "--executor", "ray").stdout)
    assert plan["computed_by"] == "one worker for each processor of a Ray cluster started on this machine"
    plan = json.loads(run("merge", "ties.yml", "out", "--dry-run", "--json", "--threads", "2").stdout)
    assert plan["computed_by"] == "2 thread(s) of this process"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--workers", "2"], "--ray-address and --workers need --executor ray"),
        (["--ray-address", "auto"], "--ray-address and --workers need --executor ray"),
        (["--executor", "ray", "--threads", "2"], "--threads is for --executor local"),
        (["--executor", "ray", "--engine", "mergekit"], "work only with --engine native"),
    ],
)
def test_options_that_do_not_go_together_are_refused(more, problem, folder):
    assert problem in run("merge", "ties.yml", "out", *more, code=2).stderr


def test_problems_of_the_cluster_are_one_line_in_the_words_of_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("merge", "ties.yml", "out", "--executor", "ray", code=1)
    assert done.stderr.splitlines()[-1] == "error: executor: ray is not installed; pip install 'weightops[ray]'"
    assert not [path for path in folder.iterdir() if path.name.startswith((".", "out"))]


def test_a_cluster_that_does_not_answer_is_reported_in_one_line(folder):
    pytest.importorskip("ray", reason="needs the extra ray")
    done = run("merge", "ties.yml", "out", "--executor", "ray", "--ray-address", "127.0.0.1:1", code=1)
    assert re.match(
        r"error: executor: no Ray cluster answers at 127.0.0.1:1 \(.+\); start one with ray start --head, or leave the ",
        done.stderr.splitlines()[-1],
    )


@pytest.mark.slow
def test_a_merge_with_a_plugin_on_a_cluster_of_this_machine_gives_the_same_weights(folder):
    pytest.importorskip("ray", reason="needs the extra ray")
    Path("mine.yml").write_text(Path("ties.yml").read_text().replace("ties", "median"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for out, *more in (("here",), ("there", "--executor", "ray", "--workers", "2")):
        words = [sys.executable, "-m", "weightops", "merge", "mine.yml", out, "--plugin", str(PLUGIN), *more]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert "no Ray cluster is named: started one on this machine, with 2 processors" in done.stderr
    here, there = tiny.files_of(Path("here")), tiny.files_of(Path("there"))
    differ = {name for name in here if here[name] != there[name]}
    assert differ == {"README.md", "weightops.json"}  # they hold the command, and the digest of the card
