"""``weightops generate`` and ``weightops sorted bench`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from merge_files import quiet
from tiny_chat import write_chat_model

from weightops.cli import main


def run(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of two layers with a chat template."""
    with quiet():
        return write_chat_model(tmp_path_factory.mktemp("generate") / "chat")


def texts(*args: object) -> list[list[str]]:
    done = run("generate", *args, "--max-tokens", 12, "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    return [batch["texts"] for batch in json.loads(done.stdout)]


def test_every_way_that_may_not_change_the_text_writes_the_same(model):
    plain = texts(model, "is this safe", "or not", "--plain")
    assert len(plain) == 2
    assert texts(model, "is this safe", "or not") == plain
    assert texts(model, "is this safe", "or not", "--exits", 1, "--draft", 3) == plain
    assert texts(model, "is this safe", "or not", "--batch", 2, "--exits", 1, "--draft", 3) == [plain[0] + plain[1]]


def test_the_chat_template_asks_unless_the_text_is_to_be_continued(model):
    prompts, continued = (
        json.loads(run("generate", model, "safe", "--max-tokens", 5, "--json", *more).stdout)[0]["tokens"]
        for more in ((), ("--raw",))
    )
    assert prompts != continued


def test_prompts_come_from_rows_too(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "is this safe"}, {"role": "assistant", "content": "yes"}]
    rows = [{"prompt": "is this safe", "completion": "no"}, {"messages": turns}, {"text": "is this safe"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_rows = texts(model, "--prompts", file)
    assert from_rows == [texts(model, "is this safe")[0]] * 3


def test_a_row_without_a_prompt_is_named_with_its_line(model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n{"label": 1}\n')
    done = run("generate", model, "--prompts", file)
    assert done.exit_code == 1
    assert done.stderr == f"error: {file}, line 2: no prompt; give prompt, messages or text\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 1, "error: no prompt; give one after the model, or name a file with --prompts"),
        (("hi", "--exits", "2"), 1, "error: exit 2: the model has 2 layers; exits are from 1 to 1"),
        (("hi", "--max-tokens", "5000"), 1, "and 5000 more would pass the model's context of 256"),
        (("hi", "--plain", "--exits", "1"), 2, "--plain, --confidence, and --exits with --draft exclude each other"),
        (("hi", "--exits", "one"), 2, "'one' is not a list of layers such as 12,18,24"),
        (("hi", "--confidence", "1:0.5"), 2, "is not a list of layers with thresholds such as 12=0.95,18=0.9"),
        (("hi", "--confidence", "1=2"), 1, "error: exit 1: its threshold is 2.0"),
    ],
)
def test_bad_input_is_one_line(model, args, code, says):
    done = run("generate", model, *args)
    assert done.exit_code == code
    assert says in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1


def test_tokens_that_leave_early_are_counted_by_layer(model):
    done = run("generate", model, "is this safe", "--max-tokens", 12, "--confidence", "1=0.01")
    assert done.exit_code == 0, done.output
    assert "at layer 1" in done.stderr


def test_the_bench_compares_ways_and_draws_them(model, tmp_path):
    prompts, picture = tmp_path / "prompts.jsonl", tmp_path / "decoding.png"
    prompts.write_text('{"text": "is this safe"}\n{"text": "or unsafe"}\n')
    args = ("sorted", "bench", model, "--prompts", prompts, "--max-tokens", 6, "--dtype", "float32")
    done = run(*args, "--picture", picture, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    by_name = {way["name"]: way for way in report["ways"]}
    assert by_name["plain"]["speed"] == 1
    assert all(way["same"] == 1 for name, way in by_name.items() if name.startswith(("exit", "chosen", "transformers")))
    assert by_name["exit 1, drafts of 2"]["acceptance"] is not None
    assert by_name[report["best"]]["speed"] >= 1
    assert picture.stat().st_size > 10_000
    shown = run(*args, "--no-transformers")
    assert "transformers" not in shown.stdout
    assert "fastest with the same text: " in shown.stdout
    assert "next: weightops generate" in shown.stderr
