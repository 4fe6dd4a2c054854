"""What a newcomer meets first: help with right examples, hints for misspelt names, options before or after a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import tiny_models as tiny
from click.testing import CliRunner
from command_lines import commands_in, parse

import weightops as wo
from weightops.cli import COMMANDS, RESUMABLE, SECTIONS, main
from weightops.errors import WeightopsError


def every_command(
    group: click.Group = main, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Words and command, of groups too."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield (*above, name), command
            if isinstance(command, click.Group):
                yield from every_command(command, (*above, name))


EVERY = dict(every_command())


EXAMPLES = [
    pytest.param(words, id=" ".join(words))
    for command in (main, *EVERY.values())
    for words in commands_in(command.help or "")
    if "COMMAND" not in words
]


@pytest.mark.parametrize("words", EXAMPLES)
def test_every_example_in_the_help_parses(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine-guard").mkdir()  # what verify is shown to check
    parse(words)


@pytest.mark.parametrize("words", [words for words, command in EVERY.items() if isinstance(command, click.Group)])
def test_the_list_of_subcommands_has_whole_sentences(words):
    listed = CliRunner().invoke(main, [*words, "--help"]).stdout.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed


def test_a_wrong_example_would_be_found():
    with pytest.raises(click.UsageError):
        parse(["guard", "score", "--thresold", "0.5", "mine-guard"])
    with pytest.raises(click.UsageError):
        parse(["merge", "ties.yml"])


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_shows_an_example_of_itself(words):
    assert any(tuple(example[: len(words)]) == words for example in commands_in(EVERY[words].help or ""))


@pytest.mark.parametrize("words", [words for words, command in EVERY.items() if not isinstance(command, click.Group)])
def test_every_command_takes_json_and_quiet_before_and_after_its_name(words):
    names = {option for parameter in EVERY[words].params for option in parameter.opts}
    assert {"--json", "--quiet"} <= names
    assert {"--json", "--quiet"} <= {option for parameter in main.params for option in parameter.opts}


@pytest.mark.parametrize(
    "words",
    [["recipes", "list"], ["recipes", "show", "sft"], ["methods"], ["methods", "show", "ties"], ["recipes", "validate", "target-python"]],
    ids=" ".join,
)  # fmt: skip
def test_json_before_the_command_is_json_after_it(words):
    before, after = (CliRunner().invoke(main, args) for args in (["--json", *words], [*words, "--json"]))
    assert (before.exit_code, before.stdout) == (0, after.stdout)
    json.loads(before.stdout)
    assert before.stderr == ""


def test_after_an_error_stdout_is_empty_with_json_too():
    done = CliRunner().invoke(main, ["--json", "recipes", "show", "nothing"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nothing: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["mrege"], "did you mean merge?"),
        (["guard", "scroe"], "did you mean score?"),
        (["recipes", "cpoy"], "did you mean copy?"),
        (["methods", "shwo"], "did you mean show?"),
        (["recipes", "zzz"], "available: list, show, copy, validate"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_nearest(words, hint):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert f"{words[-1]}: no such command; {hint}" in done.stderr


def test_the_help_has_every_command_once_in_its_section_and_the_exit_codes():
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)
    text = CliRunner().invoke(main, ["--help"]).stdout
    for title in SECTIONS:
        assert f"{title}:\n" in text
    assert [line.split()[0] for line in text.partition("Exit codes:\n")[2].splitlines()[:4]] == ["0", "1", "2", "130"]


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "weightops", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == CliRunner().invoke(main, ["--help"], prog_name="weightops").stdout


@pytest.mark.parametrize(
    "words", [["--plugin", "{}", "show", "median"], ["show", "--plugin", "{}", "median"], ["show", "median", "--plugin", "{}"]]
)  # fmt: skip
def test_a_plugin_is_taken_before_and_after_the_subcommand(words, tmp_path):
    source = (
        "from torch import Tensor\nfrom weightops import operator\n\n@operator(reads='elementwise', paper='none')\n"
    )
    source += (
        "def median(deltas: Tensor) -> Tensor:\n    '''Take the middle one.'''\n    return deltas.median(0).values\n"
    )
    (tmp_path / "mine.py").write_text(source)
    words = [word.format(tmp_path / "mine.py") for word in words]
    code = "from weightops.cli import main; main(prog_name='weightops')"
    done = subprocess.run([sys.executable, "-c", code, "methods", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Take the middle one." in done.stdout


@pytest.mark.parametrize(("name", "resumes"), [(name, name in RESUMABLE) for name in ("merge", "inspect")])
def test_an_interrupt_is_one_plain_line_and_exit_code_130(name, resumes, monkeypatch):
    @click.command(name)
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(type(main), "get_command", lambda *_: interrupted)
    done = CliRunner().invoke(main, [name])
    assert done.exit_code == 130
    assert done.stderr == "Interrupted." + " Run the same command again to resume." * resumes + "\n"


@pytest.mark.parametrize("words", [words for words, command in EVERY.items() if not isinstance(command, click.Group)])
def test_no_output_is_written_to_the_hub_and_the_command_that_uploads_is_named(words):
    for parameter in EVERY[words].params:
        if parameter.name == "out":
            with (
                pytest.raises(click.BadParameter, match="weightops push FOLDER org/name"),
                click.Context(EVERY[words]) as context,
            ):
                parameter.type_cast_value(context, "hf://org/name")


def test_in_python_too_no_output_is_written_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = wo.open(tiny.write(tmp_path / "model", tiny.llama(0)))
    with pytest.raises(WeightopsError, match="weightops push FOLDER org/name"):
        model.save("hf://org/name", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
