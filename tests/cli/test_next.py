"""Every command ends with the next one, which a shell takes as it is and which works; a log gets plain lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from command_lines import commands_in, parse
from tiny_chat import write_chat_model

from weightops.cli import main
from weightops.guard.card import GuardCard


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a blank in its name, a model and rows to train a guard on."""
    folder = tmp_path_factory.mktemp("next") / "my models"
    folder.mkdir()
    write_chat_model(folder / "base")
    rows = [{"text": f"{word} {n}", "label": label} for n in range(12) for word, label in (("a", 0), ("b", 1))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*words: object) -> list[list[str]]:
    """Run a command; the words of the commands that it suggests."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    assert lines, f"{words}: suggests nothing"
    return [words for line in lines for words in commands_in(line)]


def train(room, kind: str, recipe: str = "guard-full-text") -> tuple[list[str], ...]:
    sets = [
        f"base={room / 'base'}",
        f"data.files={room / 'rows.jsonl'}",
        "training.epochs=1",
        f"training.update={kind}",
    ]
    words = ["train", recipe, *(part for each in sets for part in ("--set", each))]
    return tuple(run(*words, "--out", room / f"{recipe}-{kind}"))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_guard_that_was_trained_is_tried_and_composed_by_the_commands_that_follow(room, kind, monkeypatch):
    score, compose = train(room, kind)
    assert score[:2] == ["guard", "score"]
    assert run(*score) == [["guard", "serve", score[2]]]
    options = dict(zip(compose[1::2], compose[2::2], strict=True))
    assert options["--target"] == "TARGET"
    composed = [str(room / "base") if word == "TARGET" else word for word in compose[:-1]] + [room / f"{kind}-guard"]
    (again,) = run(*composed)
    assert again[:3] == ["guard", "score", str(room / f"{kind}-guard")]
    assert GuardCard.read(room / f"{kind}-guard")
    monkeypatch.setattr(sys, "argv", ["weightops", *map(str, composed), "--dry-run", "--overwrite"])
    assert run(*composed, "--dry-run", "--overwrite") == [[*map(str, composed), "--overwrite"]]
    assert run("verify", room / f"{kind}-guard") == [again]
    assert run("inspect", room / f"{kind}-guard") == [again]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_was_tuned_is_listed_by_the_command_that_follows(room, kind):
    (listed,) = train(room, kind, "sft")
    assert listed[0] == "inspect"
    run(*listed)


def test_a_recipe_is_copied_checked_and_trained_by_the_commands_that_follow(room, monkeypatch):
    monkeypatch.chdir(room)
    (copy,) = run("recipes", "list")
    validate, by_default = run(*copy)
    (room / "guard-prefix.yaml").write_text(
        (room / "guard-prefix.yaml").read_text().replace("prompts.jsonl", "'rows.jsonl'")
    )
    (trained,) = run(*validate)
    assert trained == by_default == ["train", "guard-prefix.yaml", "--out", "guard-prefix"]
    (with_sets,) = run(*validate, "--set", "data.files=rows.jsonl")
    assert parse(with_sets).params["sets"] == ("data.files=rows.jsonl",)
    assert run("recipes", "show", "sft") == [["recipes", "copy", "sft"]]


def test_methods_and_merge_say_what_follows(room):
    (show,) = run("methods")
    (merge,) = run(*show)
    assert parse(merge).info_name == "merge"
    (room / "same.yml").write_text(
        f"merge_method: linear\nmodels:\n- model: {json.dumps(str(room / 'base'))}\n  parameters: {{weight: 1}}\n"
    )
    (verify,) = run("merge", room / "same.yml", room / "merged")
    assert verify == ["verify", str(room / "merged")]
    assert run(*verify) == [["inspect", str(room / "merged")]]
    assert run("inspect", room / "merged") == [["recipes", "list"]]


def test_options_that_say_how_to_use_a_guard_are_handed_on(room):
    words = ["--preset", "guard-vector", "--threshold", "0.25"]
    (serve,) = run("guard", "score", room / "base", "text", *words)
    assert parse(serve).params["preset"] == "guard-vector"
    assert parse(serve).params["threshold"] == 0.25
    assert run("guard", "eval", room / "base", room / "rows.jsonl", "--resamples", "2", *words) == [serve]


def test_logs_are_plain_lines(room, tmp_path):
    """Standard error of every command in a file: no carriage return, no bar of another library."""
    base, rows = room / "base", room / "rows.jsonl"
    sets = [f"--set=base={base}", f"--set=data.files={rows}", "--set=training.epochs=4"]
    preset = ["--preset", "guard-vector"]
    compose = ["--guard", tmp_path / "guard", "--base", base, "--target", base, "--out", tmp_path / "composed"]
    commands = [
        ["train", "guard-full-text", *sets, "--out", tmp_path / "guard"],
        ["train", "sft", *sets, "--set=data.rename={text: text}", "--out", tmp_path / "tuned"],
        ["compose-guard", *compose],
        ["guard", "score", tmp_path / "composed", "text"],
        ["guard", "eval", base, rows, *preset, "--resamples", "2"],
        ["inspect", tmp_path / "composed"],
        ["verify", tmp_path / "composed"],
    ]
    lines = [[str(word) for word in words] for words in commands]
    code = f"from weightops.cli import main\nfor words in {lines!r}:\n    main(words, standalone_mode=False)\n"
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=log, check=False)
    text = (tmp_path / "log").read_bytes().decode()
    assert done.returncode == 0, text
    assert "\r" not in text
    for line in text.splitlines():
        assert line.startswith(("next: weightops ", "note: ", "training the guard: ", "tuning: ")), line
