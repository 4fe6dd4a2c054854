"""What the pages show can be typed: every command line parses, and the Python runs as printed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from http_clients import in_process
from tiny_chat import write_chat_model

from weightops.cli import COMMANDS, main
from weightops.output.provenance import verify

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md", "docs/training-head.txt"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The page's fenced blocks in a language; "" for those that name none."""
    return [code for word, code in FENCE.findall(text_of(page)) if word == language]


def typed(page: str) -> list[list[str]]:
    """The words of each whole ``weightops`` command line, without the command's own name."""
    joined = "\n".join([*blocks(page, ""), *blocks(page, "bash")]).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in joined.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("weightops ")]


def mentioned(page: str) -> list[list[str]]:
    """The words of each ``weightops ...`` in running text, which may leave out what is required."""
    spans = re.findall(r"(?<!`)`weightops ([^`]+)`", FENCE.sub("", text_of(page)))
    return [shlex.split(span.replace("[", "").replace("]", "")) for span in spans]


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line with the real options, and runs nothing; files need not be there."""
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: None)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: value)
    return lambda words: main.main(words, standalone_mode=False)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_of_a_page_parses(page, parse):
    for words in typed(page):
        try:
            parse(words)
        except click.ClickException as error:
            pytest.fail(f"{page}: weightops {shlex.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_in_running_text_is_there(page, parse):
    for words in mentioned(page):
        try:
            parse(words)
        except (click.MissingParameter, click.exceptions.NoArgsIsHelpError):
            pass
        except click.ClickException as error:
            if words[0] != "COMMAND":
                pytest.fail(f"{page}: `weightops {shlex.join(words)}`: {error.format_message()}")


def test_a_command_line_that_is_wrong_is_noticed(parse):
    for words in (["compose-gard"], ["verify", "out", "--deep"], ["guard", "score", "m", "--batch", "many"]):
        with pytest.raises(click.UsageError):
            parse(words)


def test_the_readme_shows_every_command():
    shown = {words[0] for words in mentioned("README.md")}
    assert set(COMMANDS) <= shown


def test_the_readme_says_for_whom_it_is_before_anything_else():
    beginning = "\n".join(text_of("README.md").splitlines()[:12])
    assert [word for word in ("engineers", "merge", "fine-tuners", "deploy", "LoRA") if word not in beginning] == []


def test_openais_client_gets_an_answer_as_the_pages_print_it(tmp_path, capsys):
    openai = pytest.importorskip("openai")
    from weightops.guard.judge import Guard
    from weightops.guard.presets import PRESETS
    from weightops.guard.serving.limits import Limits

    snippets = [code for page in ("README.md", "docs/guard.md") for code in blocks(page, "python") if "openai" in code]
    assert len(snippets) == 2, openai.__version__
    guard = Guard.load(write_chat_model(tmp_path / "guard"), PRESETS["guard-vector"].card, "float32")
    with in_process(guard, Limits()) as (url, _):
        for code in snippets:
            assert "http://127.0.0.1:8080" in code
            exec(code.replace("http://127.0.0.1:8080", url), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if line.split()[0] not in ("True", "False")] == []
    assert len(printed) == 3


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_python_of_a_page_runs_as_printed(page, tmp_path):
    (code,) = [code for code in blocks(page, "python") if "import weightops" in code]
    for name in ("guard", "target"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / "examples" / name)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "arning" not in done.stderr
    saved = re.findall(r'\.save\("([^"]+)"\)', code)
    assert saved
    for name in saved:
        assert verify(tmp_path / name) == []
        assert (tmp_path / name / "guard.json").exists(), name


@pytest.mark.slow
def test_the_merge_file_of_the_readme_merges(tmp_path):
    words = next(words for words in typed("README.md") if words[:1] == ["merge"])
    command = [sys.executable, "-c", "from weightops.cli import main; main()", *words[:2], str(tmp_path / "merged")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "merged") == []
