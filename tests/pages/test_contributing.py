"""The worked examples of CONTRIBUTING.md, put into a copy of the tree, do what the page says of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
import torch
from merge_files import family
from tiny_chat import write_chat_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
EDITS = re.findall(r"^```diff\n--- (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def edited(text: str, change: str) -> str:
    """A text with a block of a diff applied; what the block shows as there before is in the text once."""
    lines = change.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"CONTRIBUTING.md shows lines that are not in the file once:\n{before}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The repository's three floors as an installed package, with the files and edits of the page."""
    top = tmp_path_factory.mktemp("tree")
    floors = {"weightops/": "weightops", "recipes/": "weightops/recipes", "cli/": "weightops/cli"}
    for folder, name in floors.items():
        shutil.copytree(ROOT / folder, top / name, ignore=shutil.ignore_patterns("__pycache__"))

    def place(name: str) -> Path:
        folder = next(folder for folder in floors if name.startswith(folder))
        return top / floors[folder] / name.removeprefix(folder)

    for name, text in FILES.items():
        assert not place(name).exists(), f"{name} of CONTRIBUTING.md is a file of weightops now; choose another example"
        place(name).parent.mkdir(exist_ok=True)
        place(name).write_text(text)
    for name, change in EDITS:
        place(name).write_text(edited(place(name).read_text(), change))
    return top


@pytest.fixture
def run(tree, tmp_path):
    """Runs Python in the copy; what it prints."""

    def python(code: str, *words: object) -> str:
        command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(tree)!r}\n{code}", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return python


COMMAND = "from weightops.cli import main; main()"


def test_every_kind_of_addition_has_an_example():
    kinds = {"ops", "objectives", "passes", "routines", "configs", "cli", "io"}
    assert kinds <= {part for name in FILES for part in Path(name).parts}
    assert {name for name, _ in EDITS} == {"cli/__init__.py", "weightops/algebra/opening.py"}


def test_the_merge_method_works_in_python_and_in_a_merge_file(run, tree, tmp_path):
    models = family(tmp_path, ["base", "a", "b"], layers=1)
    run(
        "import doctest, weightops as wo, weightops.ops.midrange as module\n"
        "assert doctest.testmod(module) == (0, 2)\n"
        "base, a, b = (wo.open(name) for name in ('base', 'a', 'b'))\n"
        "wo.midrange([a - base, b - base], share=0.5).on(base).save('called', progress=False)\n"
    )
    (tmp_path / "m.yml").write_text(
        "merge_method: midrange\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {share: 0.5}\n"
    )
    run(COMMAND, "merge", "m.yml", "merged")
    base, a, b, called, merged = (tiny.read(tmp_path / name) for name in (*models, "called", "merged"))
    for name, value in base.items():
        expected = value + ((a[name] - value) + (b[name] - value)) / 4  # of two, the middle is the mean
        assert torch.allclose(called[name], expected, atol=1e-6), name
        assert torch.equal(called[name], merged[name]), name
    assert "share=1.0" in run(COMMAND, "methods")
    run("import runpy; runpy.run_module('weightops.algebra.stub', run_name='__main__')")
    assert "def midrange(" in (tree / "weightops" / "__init__.pyi").read_text()


def test_the_objective_and_the_routine_train(run, tmp_path):
    write_chat_model(tmp_path / "model")
    rows = [{"text": f"is this safe {number % 3}"} for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"--set={each}" for each in ("base=model", "training.precision=fp32", "training.epochs=1")]
    sets += ["--set=data.files=rows.jsonl"]
    chosen = ["--set=objective=focal_token", "--set=objective.focus=1"]
    run(COMMAND, "train", "sft", *sets, *chosen, "--out", "tuned")
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    printed = run(COMMAND, "recipes", "list")
    assert "read-texts" in printed
    assert "A model that has read your texts." in printed
    run(COMMAND, "train", "read-texts", *sets, "--set=training.batch=1", "--out", "read")
    assert json.loads((tmp_path / "read" / "training.json").read_text())["steps"] == 3  # three texts, each once


def test_the_pass_rewrites_rows(run, tmp_path):
    write_chat_model(tmp_path / "model")
    rows = [{"prompt": "is this safe?", "completion": "safe " * number} for number in (1, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"--set={each}" for each in ("base=model", "data.files=rows.jsonl", "rewrite=shorter",
                                         "rewrite.writer.kind=local", "rewrite.writer.tokens=4")]  # fmt: skip
    run(COMMAND, "data", "run", "sft", *sets, "--out", "shorter.jsonl")
    written = [json.loads(line) for line in (tmp_path / "shorter.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in written] == ["is this safe?"] * 2
    assert all(len(record["completion"]) <= len(row["completion"]) for record, row in zip(written, rows, strict=True))


def test_without_focus_the_objective_is_plain_next_token(run, tmp_path):
    write_chat_model(tmp_path / "model")
    run(
        "from weightops.algebra.loading import load\n"
        "from weightops.recipes.floor.components import component\n"
        "model, tokenizer = load('model', 'float32')\n"
        "rows = [{'input_ids': [5, 6, 7, 8], 'trained': [False, False, True, True]},\n"
        "        {'input_ids': [9, 10], 'trained': [True, True]}]\n"
        "losses, items = [], []\n"
        "for objective in (component('objectives', 'focal_token')(focus=0.0), component('objectives', 'next_token')()):\n"
        "    objective = objective.ready(model, tokenizer, rows)\n"
        "    batch = objective.batch(rows)\n"
        "    losses.append(objective.loss(model, batch).item())\n"
        "    items.append(objective.items(batch))\n"
        "assert items == [3, 3], items\n"
        "assert abs(losses[0] - losses[1]) < 1e-4, losses\n"
    )


def test_the_command_counts_and_is_listed_with_the_others(run, tmp_path):
    folder = family(tmp_path, ["base"], layers=1)["base"]
    count = sum(tensor.numel() for tensor in tiny.read(folder).values())
    assert run(COMMAND, "count", folder) == f"{count:,}\n"
    assert json.loads(run(COMMAND, "count", folder, "--json")) == {"parameters": count}
    assert "Count a model's parameters." in run(COMMAND, "--help")


def test_the_source_is_read_as_any_other_and_a_bad_one_is_a_line(run, tmp_path):
    arrays = {"model.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "model.b.weight": np.ones(3, np.float16)}
    np.savez(tmp_path / "good.npz", **arrays)
    np.savez(tmp_path / "objects.npz", bad=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(10**6, np.float32))
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    out = run(
        "import weightops as wo\n"
        "model = wo.open('good.npz')\n"
        "print(*sorted(model.names), model.tensor('model.a.weight').tolist())\n"
        "for name in ('objects', 'bomb', 'noise'):\n"
        "    try: wo.open(f'{name}.npz')\n"
        "    except wo.WeightopsError as error: print(*error.problems)\n"
    )
    opened, *refused = out.splitlines()
    assert opened == "model.a.weight model.b.weight [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"
    for line, (name, what) in zip(
        refused, {"objects": "allow_pickle", "bomb": "over 16 times", "noise": "not a zip file"}.items(), strict=True
    ):
        assert line.startswith(f"{name}.npz: ")
        assert what in line


@pytest.mark.skipif(find_spec("ruff") is None, reason="a tool of the people who change weightops")
def test_the_examples_keep_the_projects_style(tmp_path):
    shutil.copy(ROOT / "ruff.toml", tmp_path)
    for name, text in FILES.items():
        if name.endswith(".py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
