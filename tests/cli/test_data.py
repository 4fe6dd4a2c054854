"""``weightops data``: passes run from the command line, and rows shown as the model reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_chat import write_chat_model

from weightops.cli import main

ROWS = [{"prompt": f"What is {n}?", "responses": [f"safe {n}", "unsafe or not", "\x1b[2J"]} for n in range(3)]


def run(*args, code=0):
    result = CliRunner().invoke(main, ["data", *map(str, args)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("data") / "model")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def grape(rows, model, out, *more, code=0):
    return run("run", "grape", "--set", f"data.files={rows}", "--set", f"base={model}", "--out", out, *more, code=code)


def records(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_pass_writes_rows_that_name_where_they_are_from(rows, model, tmp_path):
    out = tmp_path / "best.jsonl"
    printed = grape(rows, model, out, "--set", "rewrite.keep=2").stdout
    assert "6 rows made of 3" in printed
    assert [(record["prompt"], record["from"]) for record in records(out)] == [
        (f"What is {n}?", f"{rows}, line {n + 1}") for n in range(3) for _ in range(2)
    ]
    assert (tmp_path / "best.jsonl.answers.jsonl").is_file()


def test_a_second_run_asks_nothing_and_replaces_only_when_told(rows, model, tmp_path):
    out = tmp_path / "best.jsonl"
    grape(rows, model, out)
    before = out.read_bytes()
    assert "exists" in grape(rows, model, out, code=1).output
    again = json.loads(grape(rows, model, out, "--overwrite", "--json").stdout)
    assert (again["asked"], again["known"], again["made"]) == (0, 9, 3)
    assert out.read_bytes() == before


def test_what_is_not_a_file_of_rows_is_never_replaced(rows, model, tmp_path):
    out = tmp_path / "thesis.jsonl"
    out.write_text("my thesis")
    assert "not a file of rows" in grape(rows, model, out, "--overwrite", code=1).output
    assert out.read_text() == "my thesis"
    assert "end --out in .jsonl" in grape(rows, model, tmp_path / "best.txt", code=1).output


def test_a_dry_run_reads_the_rows_and_writes_nothing(rows, model, tmp_path):
    assert "3 rows can be rewritten" in grape(rows, model, tmp_path / "best.jsonl", "--dry-run").stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_every_row_without_the_field_is_named_with_its_line(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], {"prompt": "?"}, {"responses": ["a"]}]))
    output = grape(file, model, tmp_path / "best.jsonl", "--dry-run", code=1).output
    assert "line 2: responses" in output
    assert "line 3: needs prompt" in output


def test_a_recipe_without_a_pass_is_refused(rows, model, tmp_path):
    output = run("run", "sft", "--set", f"data.files={rows}", "--out", tmp_path / "x.jsonl", code=1).output
    assert "has no pass to run" in output


def test_a_training_rewrites_its_rows_first_and_is_that_on_the_rows_of_the_pass_alone(rows, model, tmp_path):
    def train(name, recipe, file):
        sets = [f"data.files={file}", f"base={model}", "training.epochs=1", "training.precision=fp32"]
        sets += ["training.lr=1e-3", "training.batch=2", "data.held_out=0"]
        options = [part for each in sets for part in ("--set", each)]
        result = CliRunner().invoke(main, ["train", recipe, *options, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output + str(result.exception)
        return tmp_path / name

    tuned = train("tuned", "grape", rows)
    assert json.loads((tuned / "training.json").read_text())["rows"] == 3
    grape(rows, model, tmp_path / "best.jsonl")
    apart = train("apart", "sft", tmp_path / "best.jsonl")
    assert (tuned / "model.safetensors").read_bytes() == (apart / "model.safetensors").read_bytes()
    assert (tuned / "model.safetensors").read_bytes() != (Path(model) / "model.safetensors").read_bytes()


def test_show_marks_what_is_learned_and_hides_control_characters(rows, model, tmp_path):
    file = tmp_path / "own.jsonl"
    row = {"prompt": "is this safe", "completion": "\x1b[2Jsafe é€", "source": "self", "from": "gold.jsonl, line 7"}
    file.write_text(json.dumps(row) + "\n")
    shown = run("show", file, "--model", model).stdout
    assert "own.jsonl, line 1, made of gold.jsonl, line 7, source self" in shown
    assert "<|im_start|>user\nis this safe<|im_end|>" in shown
    assert "[[\ufffd[2Jsafe é€<|im_end|>]]" in shown
    assert "\x1b" not in shown
    tokens = json.loads(run("show", file, "--model", model, "--json").stdout)[0]["tokens"]
    assert "".join(text for text, learned in tokens if learned) == "\ufffd[2Jsafe é€<|im_end|>"


def test_show_past_the_end_says_how_many_rows_there_are(rows, model):
    assert "fewer than 9 rows" in run("show", rows, "--model", model, "--first", 9, code=1).output
