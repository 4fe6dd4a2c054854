"""The shell completes commands, options and aliases."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from weightops.cli import COMMANDS, main
from weightops.io.gguf import ALIASES


def completed(*words: str) -> list[str]:
    """What the shell is offered after these words, the last one unfinished."""
    *args, incomplete = words
    shell = BashComplete(main, {}, "weightops", "_WEIGHTOPS_COMPLETE")
    return [item.value for item in shell.get_completions(list(args), incomplete)]


def test_commands_are_completed():
    assert completed("") == list(COMMANDS)
    assert "compose-guard" in completed("com")
    assert completed("zzz") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_listed_with_its_line_and_can_be_imported(command):
    with click.Context(main) as context:
        subcommand = main.get_command(context, command)
        assert subcommand is not None
        assert subcommand.help
        text = main.get_help(context)
    assert command in text
    assert COMMANDS[command][1].split(":")[0] in text
    for parameter in subcommand.params:
        assert not isinstance(parameter, click.Option) or parameter.help or parameter.hidden, parameter.name


@pytest.mark.parametrize("option", ["--guard", "--base", "--target"])
def test_aliases_are_completed_where_a_model_is_wanted(option):
    for alias in ALIASES:
        assert completed("compose-guard", option, alias[:4])[0] == alias
        assert completed("inspect", alias[:4])[0] == alias
    assert completed("compose-guard", option, "./mine") == ["./mine"]  # and files


def test_options_and_choices_are_completed():
    assert completed("compose-guard", "--lab") == ["--labels"]
    assert set(completed("compose-guard", "--")) >= {"--guard", "--base", "--target", "--out", "--dry-run", "--json"}
    assert completed("soup", "evolve", "evolve.yml", "--max") == ["--max-tokens"]  # mergekit's options are not offered
    assert completed("soup", "evolve", "evolve.yml", "--si") == ["--sigma0"]
    assert completed("compose-guard", "--dtype", "") == ["auto", "float32", "bfloat16", "float16", "fp8-block"]


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_there_is_a_script_for_the_shells(shell):
    assert "_WEIGHTOPS_COMPLETE" in shell(main, {}, "weightops", "_WEIGHTOPS_COMPLETE").source()


def test_recipes_methods_and_presets_are_completed_by_name():
    assert completed("train", "guard-p") == ["guard-prefix", "guard-p"]  # and files
    assert completed("recipes", "show", "sft-")[0] == "sft-lora"
    assert completed("recipes", "copy", "target")[0] == "target-python"
    assert completed("recipes", "validate", "guard-f")[0] == "guard-full-text"
    assert completed("methods", "show", "tie") == ["ties"]
    assert completed("guard", "score", "m", "--preset", "llama") == ["llama-guard-3", "llama-guard-4"]


@pytest.mark.parametrize("command", [["train"], ["recipes", "validate"]])
def test_the_keys_of_the_recipe_are_completed_and_their_values_where_they_are_few(command):
    def settings(text: str, recipe: str = "sft-lora") -> list[str]:
        return completed(*command, recipe, "--set", text)

    assert settings("training.l") == ["training.lr="]
    assert settings("training.update.r") == ["training.update.rank="]
    assert settings("training.schedule=c") == ["training.schedule=cosine", "training.schedule=constant_with_warmup"]
    assert settings("training.update=") == [f"training.update={kind}" for kind in ("full", "lora", "sparse")]
    assert settings("objective=n") == ["objective=next_token"]
    assert settings("packing=") == ["packing=true", "packing=false"]
    assert settings("recipe=") == ["recipe=disperse_then_merge", "recipe=guard", "recipe=sft", "recipe=target"]
    assert settings("prefix") == []  # a key of another routine
    assert settings("prefix", "guard-prefix") == ["prefix_chars="]
    assert settings("prefix", "no-such-recipe") == ["prefix_chars="]  # of every routine


def test_every_key_that_is_offered_is_a_key_of_the_recipe():
    from weightops.errors import WeightopsError
    from weightops.recipes.catalog import read, shipped

    def known(recipe: str, *sets: str) -> bool:
        try:
            read(recipe, sets)
        except WeightopsError as error:
            return not any("unknown key" in problem for problem in error.problems)
        return True

    for name in shipped():
        for key in completed("train", name, "--set", ""):
            parent = key.rpartition(".")[0]
            kinds = completed("train", name, "--set", f"{parent}=")
            assert known(name, f"{key}[]") or any(known(name, kind, f"{key}[]") for kind in kinds), key
    assert not known("sft", "nonsense=1")


@pytest.mark.parametrize(
    ("shell", "words", "position", "expected"),
    [
        ("bash", "weightops train guard-p", "2", "plain,guard-prefix"),
        ("zsh", "weightops train guard-p", "2", "plain\nguard-prefix\n_"),
        ("fish", "weightops train guard-p", "guard-p", "plain,guard-prefix"),
        ("bash", "weightops train sft --set training.l", "4", "plain,training.lr="),
        ("zsh", "weightops train sft --set training.l", "4", "plain\ntraining.lr=\n_"),
        ("fish", "weightops train sft --set training.l", "training.l", "plain,training.lr="),
    ],
)
def test_each_shell_gets_its_own_form(shell, words, position, expected):
    variables = {"_WEIGHTOPS_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    code = "from weightops.cli import main; main(prog_name='weightops')"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
    assert done.stdout.startswith(expected), done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["--set", "training.l"], ["training.lr="]),
        (["--set", "training.schedule", "="], ["linear", "cosine", "constant_with_warmup"]),
        (["--set", "training.schedule", "=", "c"], ["cosine", "constant_with_warmup"]),
        (["--set", "=", "training.schedule", "=", "co"], ["cosine", "constant_with_warmup"]),
        (["--set", "=", "training.l"], ["training.lr="]),
    ],
)
def test_bash_which_splits_words_at_equals_signs_is_offered_what_follows(typed, offered, tmp_path):
    """In a real bash, with the words as readline hands them over."""
    (tmp_path / "weightops").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from weightops.cli import main; main(prog_name=\'weightops\')" "$@"\n'
    )
    (tmp_path / "weightops").chmod(0o755)
    words = ["weightops", "train", "sft", *typed]
    script = 'eval "$(_WEIGHTOPS_COMPLETE=bash_source weightops)"\ncompopt() { echo compopt; }\n'
    script += f"COMP_WORDS=({' '.join(words)})\nCOMP_CWORD={len(words) - 1}\n_weightops_completion weightops\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True)
    spaces, values = (
        [line for line in done.stdout.splitlines() if (line == "compopt") is keep] for keep in (True, False)
    )
    assert values == offered, done.stderr
    assert bool(spaces) is offered[0].endswith("=")
