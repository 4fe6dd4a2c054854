"""``weightops train`` and ``weightops recipes``."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tiny_chat import write_chat_model

from weightops.cli import main
from weightops.guard.card import GuardCard
from weightops.recipes.catalog import read, routines, settings_of, shipped


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_every_shipped_recipe_is_listed_shown_and_right_once_it_has_rows(tmp_path):
    listed = run("recipes", "list").stdout
    assert {"guard-full-text", "guard-prefix", "target-python"} <= set(shipped())
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for name, file in shipped().items():
        assert name in listed
        assert run("recipes", "show", name).stdout == file.read_text()
        rows = [f"--set=data.files={tmp_path / 'rows.jsonl'}"] if read(name).data else []
        checked = run("recipes", "validate", name, *rows).stdout
        assert "settings are right" in checked
        assert "not checked: rows, weights" in checked
        assert type(read(name)) in [settings_of(routine) for routine in routines()]


def test_a_copy_is_yours_and_is_not_overwritten(tmp_path):
    run("recipes", "copy", "guard-prefix", tmp_path / "mine.yml")
    assert read(str(tmp_path / "mine.yml")) == read("guard-prefix")
    assert "exists already" in run("recipes", "copy", "guard-prefix", tmp_path / "mine.yml", code=1).stderr


def test_every_fault_is_said_at_once_with_its_line(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("recipe: guard\nbase: 3\ndata:\n  filse: [a.jsonl]\ntraining:\n  lr: fast\n  schedule: random\n")
    lines = run(
        "recipes", "validate", file, "--set", "training.epochs=many", "--set", "oops", code=1
    ).stderr.splitlines()
    assert [line.split(": ")[1] for line in lines[:4]] == [f"{file}:{number}" for number in (2, 4, 6, 7)]
    assert "did you mean 'files'" in lines[1]
    assert lines[4] == "error: set training.epochs=many: training.epochs: must be a whole number; found 'many'"
    assert lines[5].startswith("error: set oops: must be written key=value")
    file.write_text("recipe: guard\nbase: a\ndata:\n  files: rows.csv\nprefix_chars: -1\n")
    lines = run("recipes", "validate", file, code=1).stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [f"{file}:{number}" for number in (4, 5)]
    file.write_text("recipe: nonsense\n")
    assert ":1: no recipe 'nonsense'" in run("recipes", "validate", file, code=1).stderr
    assert "available: disperse_then_merge, guard" in run("recipes", "validate", file, code=1).stderr
    assert "cannot be read" in run("recipes", "validate", tmp_path / "none.yml", code=1).stderr


def test_set_goes_over_the_file_and_reads_numbers_as_people_write_them():
    made = read("guard-prefix", ["training.lr=5e-5", "data.files=x.jsonl", "training.lora.rank=8", "prefix_chars=50"])
    assert (made.training.lr, made.data.files, made.training.update.rank, made.prefix_chars) == (
        5e-5,
        ("x.jsonl",),
        8,
        50,
    )
    assert made.data.held_out == 0.1  # what stands beside it stays


def test_train_makes_a_guard_and_the_same_again_is_refused(tmp_path):
    model = write_chat_model(tmp_path / "model")
    rows = [{"text": f"{word} {n}", "label": label} for n in range(4) for word, label in (("a", 0), ("b", 1))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"--set=base={model}", f"--set=data.files={tmp_path / 'rows.jsonl'}", "--set=training.epochs=1"]
    done = run("train", "guard-prefix", *sets, "--out", tmp_path / "guard")
    assert "wrote" in done.stdout
    assert "accuracy" in done.stdout
    assert GuardCard.read(tmp_path / "guard").labels == ("safe", "unsafe")
    assert "exists already" in run("train", "guard-prefix", *sets, "--out", tmp_path / "guard", code=1).stderr


@pytest.mark.parametrize("args", [["recipes", "list"], ["recipes", "validate", "target-python"], ["train", "--help"]])
def test_looking_at_recipes_loads_no_torch(args):
    script = f"import sys\nfrom weightops.cli import main\ntry:\n    main({args!r})\nfinally:\n"
    script += "    assert not {'torch', 'transformers', 'numba'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
