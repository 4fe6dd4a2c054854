"""``weightops merge-with-data`` from the command line: what is written, what is printed, what is refused."""

import json

import pytest
import tiny_models as tiny
from click.testing import CliRunner

from weightops.cli import main


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two models, each with its data, as arguments."""
    folder = tmp_path_factory.mktemp("merge-with-data")
    for seed, name in enumerate("ab"):
        tiny.transformer(folder / name, "llama", tied=True, seed=seed)
        rows = [{"text": " ".join(tiny.WORDS[3 + (n + seed) % 6 :])} for n in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{folder / name}={folder / name}.jsonl" for name in "ab"]


def run(*args):
    return CliRunner().invoke(main, ["merge-with-data", *map(str, args)])


def test_it_writes_a_model_and_says_what_to_do_next(pairs, tmp_path):
    out = tmp_path / "out"
    dry = run(*pairs, "--rows", 2, "--out", out, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "of memory, hidden states" in dry.stdout
    assert not out.exists()
    done = run(*pairs, "--rows", 2, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.stdout
    assert f"next: weightops verify {out}" in done.stderr
    again = CliRunner().invoke(main, ["verify", str(out)])
    assert again.exit_code == 0
    assert "exists" in run(*pairs, "--out", out).stderr


def test_json_is_one_document(pairs, tmp_path):
    done = run(*pairs, "--method", "fisher", "--weights", "3,1", "--rows", 2, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [model["weight"] for model in result["models"]] == [0.75, 0.25]
    assert [model["rows"] for model in result["models"]] == [2, 2]
    names = [pair.partition("=")[0] for pair in pairs]
    random = run(*names, "--method", "fisher", "--random", "--rows", 2, "--out", tmp_path / "b", "--dry-run", "--json")
    assert json.loads(random.stdout)["models"][0]["data"] == "random tokens"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a, b: [a], "1 model to merge; name at least two as MODEL=DATA..."),
        (lambda a, b: [a, b.partition("=")[0]], "no data for this model; write"),
        (lambda a, b: [a, b, "--random"], "random tokens replace the data; name only the model"),
        (lambda a, b: [a, f"{b}.gz"], "cannot be read"),
        (lambda a, b: [a, b, "--weights", "1,x"], "'1,x' is not a list of numbers"),
        (lambda a, b: [a, b, "--weights", "1,0"], "weights must be 2 numbers more than 0"),
        (lambda a, b: [a, b, "--device", "nowhere"], "nowhere"),
    ],
)
def test_problems_are_lines_and_nothing_is_written(change, problem, pairs, tmp_path):
    done = run(*change(*pairs), "--out", tmp_path / "out")
    assert done.exit_code in (1, 2)
    assert problem in done.output
    assert "bug in weightops" not in done.output
    assert list(tmp_path.iterdir()) == []
