"""The shell completes commands, options and aliases."""

from __future__ import annotations

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
        found = main.get_command(context, command)
        assert found is not None
        assert found.help
        text = main.get_help(context)
    assert command in text
    assert COMMANDS[command][1].split(":")[0] in text
    for parameter in found.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize("option", ["--guard", "--base", "--target"])
def test_aliases_are_completed_where_a_model_is_wanted(option):
    for alias in ALIASES:
        assert completed("compose-guard", option, alias[:4])[0] == alias
        assert completed("inspect", alias[:4])[0] == alias
    assert completed("compose-guard", option, "./mine") == ["./mine"]  # and files


def test_options_and_choices_are_completed():
    assert completed("compose-guard", "--lab") == ["--labels"]
    assert set(completed("compose-guard", "--")) >= {"--guard", "--base", "--target", "--out", "--dry-run", "--json"}
    assert completed("compose-guard", "--dtype", "") == ["auto", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_there_is_a_script_for_the_shells(shell):
    assert "_WEIGHTOPS_COMPLETE" in shell(main, {}, "weightops", "_WEIGHTOPS_COMPLETE").source()
