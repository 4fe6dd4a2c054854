"""``weightops guard``: what goes in and what comes out; the arithmetic has its own tests."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_chat import write_chat_model

from weightops.cli.guard import command
from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import judge
from weightops.guard.presets import PRESETS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_chat_model(tmp_path_factory.mktemp("guard"))
    from transformers import AutoTokenizer

    PRESETS["guard-vector"].card(AutoTokenizer.from_pretrained(folder)).write(folder)
    return folder


TEXTS = ["is this safe", "unsafe\nor\x1b[31m not", "日本語"]


def run(*args, code=0, **more):
    result = CliRunner().invoke(command, [str(arg) for arg in args], **more)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_score_prints_probability_label_and_text_in_one_line_each(model):
    lines = run("score", model, *TEXTS).stdout.splitlines()
    probabilities = judge(model, TEXTS)
    assert [line.split()[0] for line in lines] == [f"{p:.4f}" for p in probabilities]
    assert [line.split()[1] for line in lines] == ["unsafe" if p >= 0.5 else "safe" for p in probabilities]
    assert lines[1].endswith("unsafe or [31m not")  # a text cannot steer the terminal
    between = float(np.sort(probabilities)[0] / 2 + np.sort(probabilities)[1] / 2)
    lines = run("score", model, *TEXTS, "--threshold", between).stdout.splitlines()
    assert [line.split()[1] for line in lines].count("unsafe") == 2


def test_score_reads_arguments_lines_and_json_lines_alike(model, tmp_path):
    wanted = json.loads(run("score", model, "one", "two three", "--json").stdout)
    assert [row["text"] for row in wanted] == ["one", "two three"]
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two three", "label": "safe"}\n')
    ways = [
        (("score", model, "--json"), "one\r\ntwo three\n"),
        (("score", model, "--json", "--jsonl", file), None),
        (("score", model, "--json", "--jsonl", "-"), file.read_text()),
        (("score", model, "one", "--json", "--jsonl", "-"), '{"text": "two three"}'),
    ]
    for args, stdin in ways:
        printed = json.loads(run(*args, input=stdin).stdout)
        assert [row["text"] for row in printed] == ["one", "two three"]
        assert [row["label"] for row in printed] == [row["label"] for row in wanted]
        assert [r["probability"] for r in printed] == pytest.approx([r["probability"] for r in wanted], abs=0.01)


def test_score_without_a_text_is_one_line(model, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    for args, place in (((), "stdin"), (("--jsonl", tmp_path / "none.jsonl"), tmp_path / "none.jsonl")):
        done = run("score", model, *args, input="")
        assert (done.stdout, done.stderr) == ("", f"note: {place}: no texts to score\n")
    assert json.loads(run("score", model, "--json", input="").stdout) == []


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", ""])
def test_any_text_of_json_is_judged(model, tmp_path, text):
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "{text}"}}\n')
    assert run("score", model, "--jsonl", file).stdout.count("safe") == 1


@pytest.mark.parametrize("line", ["{", '{"texts": "a"}', '{"text": 1}', "[]", '"text"'])
def test_score_names_a_line_without_a_text(model, tmp_path, line):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n' + line)
    result = run("score", model, "--jsonl", file, code=1)
    assert isinstance(result.exception, WeightopsError)
    assert str(result.exception).startswith(f"{file}, line 2:")


def test_a_model_without_a_card_needs_a_preset(tmp_path):
    folder = write_chat_model(tmp_path / "plain")
    result = run("score", folder, "a", code=1)
    assert isinstance(result.exception, WeightopsError)
    assert "guard-vector" in str(result.exception)
    printed = json.loads(run("score", folder, "a", "--preset", "guard-vector", "--json").stdout)
    from transformers import AutoTokenizer

    card = PRESETS["guard-vector"].card(AutoTokenizer.from_pretrained(folder))
    assert printed[0]["probability"] == pytest.approx(judge(folder, ["a"], card)[0], abs=1e-6)
    wrong = run("score", folder, "a", "--preset", "nothing", code=1)
    assert "not a preset" in str(wrong.exception)


def test_a_models_name_says_its_preset(tmp_path):
    folder = write_chat_model(tmp_path / "Llama-Guard-3-tiny")
    printed = json.loads(run("score", folder, "is this", "--json").stdout)
    from transformers import AutoTokenizer

    card = PRESETS["llama-guard-3"].card(AutoTokenizer.from_pretrained(folder))
    assert printed[0]["probability"] == pytest.approx(judge(folder, ["is this"], card)[0], abs=1e-6)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "is this safe " * (at + 1), "label": "unsafe" if at % 2 else "safe"} for at in range(6)]
    rows[3]["first_unsafe_char"] = 10
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_eval_prints_the_measures_and_writes_json_and_a_picture(model, data, tmp_path):
    out = tmp_path / "some" / "report"
    args = ("eval", model, data, "--prefix-chars", "20", "--resamples", "20", "--seed", "3")
    printed = run(*args, "--out", out).stdout
    report = json.loads((out / "evaluation.json").read_text())
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert report["texts"] == 6
    assert report["unsafe"] == 3
    assert report["model"] == str(model)
    assert [len(row["probabilities"]) for row in report["rows"]] == [1, 2, 2, 3, 4, 4]  # 13, 26, ..., 78 characters
    for name, value in report["measures"].items():
        line = next(line for line in printed.splitlines() if line.startswith(name.replace("_", " ") + " "))
        shown = line.removeprefix(name.replace("_", " ")).split()[0]
        assert shown == ("-" if value["value"] is None else f"{value['value']:.4g}")
    again = json.loads(run(*args, "--json").stdout)
    assert again["measures"] == report["measures"]


def test_eval_of_whole_texts_alone_has_no_streaming_figures_and_a_picture(model, data, tmp_path):
    out = tmp_path / "report"
    printed = run("eval", model, data, "--offline", "--resamples", "20", "--out", out).stdout
    assert "offline f1" in printed
    assert "streaming" not in printed
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "evaluation.json").read_text())["prefix_characters"] == 0


def test_figures_that_do_not_exist_are_dashes(model, tmp_path):
    file = tmp_path / "safe.jsonl"
    file.write_text('{"text": "is this", "label": "safe"}\n{"text": "or this", "label": "safe"}\n')
    lines = run("eval", model, file, "--resamples", "5").stdout.splitlines()
    assert next(line for line in lines if line.startswith("auroc")).split() == ["auroc", "-", "-", "-"]
    assert "nan" not in "".join(lines)


def test_a_threshold_is_found_from_data_or_from_an_evaluation_and_written_when_asked(model, data, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    run("eval", copy, data, "--resamples", "5", "--out", tmp_path / "report")
    ways = [(data,), (tmp_path / "report" / "evaluation.json",)]
    outputs = [json.loads(run("threshold", copy, *way, "--false-alarms", "0.4", "--json").stdout) for way in ways]
    assert outputs[0]["threshold"]["threshold"] == pytest.approx(outputs[1]["threshold"]["threshold"], abs=0.01)
    assert outputs[0]["threshold"]["false_alarms"]["count"] <= 1  # of 3
    assert GuardCard.read(copy).threshold == 0.5
    printed = run("threshold", copy, *ways[1], "--false-alarms", "0.4", "--write").stdout
    assert f"wrote {copy / 'guard.json'}" in printed
    assert "of 3" in printed
    assert GuardCard.read(copy).threshold == outputs[1]["threshold"]["threshold"]
    assert GuardCard.read(model).threshold == 0.5
    run("threshold", model, *ways[1], "--false-alarms", "0.4", "--write-to", copy, "--write", code=2)
    assert "too few" in run("threshold", model, *ways[1], "--false-alarms", "0.1").stderr


def test_eval_finds_wrong_data_before_it_loads_the_model(tmp_path, data):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    for args, message in (((bad,), "line 1: not valid JSON"), ((data, "--rows", 7), "--rows 7: there are 6 texts")):
        result = run("eval", tmp_path / "no-such-model", *args, code=1)
        assert message in str(result.exception)


def test_help_imports_neither_torch_nor_transformers_nor_fastapi():
    code = (
        "import sys, weightops.cli.guard as g\n"
        "for args in (['--help'], ['score', '--help'], ['eval', '--help'], ['threshold', '--help'], ['serve', '--help']):\n"
        "    g.command.main(args, standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'transformers', 'fastapi', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == 5


def test_a_threshold_outside_its_bounds_is_a_usage_error(model):
    for wrong in ("0", "1", "x"):
        run("score", model, "a", "--threshold", wrong, code=2)
    assert GuardCard.read(model).threshold == 0.5


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (
            ("--host", "0.0.0.0"),
            "--host 0.0.0.0: other machines reach this address; give --api-key-file, or --insecure",
        ),
        (("--host", "no such host"), "no such host: not an address of this machine"),
        (("--api-key-file", "none.txt"), "none.txt: cannot be read as a list of API keys"),
        (("--tls-cert", "none.pem"), "none.pem: cannot be used for HTTPS"),
        (("--api-key", "short"), "8 to 512"),
    ],
)
def test_serve_finds_what_is_wrong_before_it_loads_the_model(tmp_path, args, problem):
    result = run("serve", tmp_path / "no-such-model", "--port", 0, *args, code=1)
    assert isinstance(result.exception, WeightopsError)
    assert problem in str(result.exception)
    assert "short" not in str(result.exception) + result.output


@pytest.fixture
def served(monkeypatch):
    """What the command hands to the server, instead of serving."""
    calls = []

    def serve(guard, name, listener, limits, access, openapi, ready):
        calls.append((listener, limits, access, openapi))
        ready(listener.url)
        listener.socket.close()

    monkeypatch.setattr("weightops.guard.serving.server.serve", serve)
    monkeypatch.setattr("weightops.guard.presets.open_guard", lambda *_: None)
    return calls


def test_serve_says_when_anyone_may_ask_and_when_it_has_stopped(served):
    result = run("serve", "folder/mine", "--host", "0.0.0.0", "--port", 0, "--insecure")
    warning, suggested = result.stderr.splitlines()
    assert warning == "warning: anyone who reaches 0.0.0.0 can use this server; it asks for no API key"
    assert suggested.startswith("next: curl -d '{")
    ready, stopped = result.stdout.splitlines()
    assert ready.startswith("mine is ready, listening on http://0.0.0.0:")
    assert stopped == "stopped"


def test_a_key_comes_from_the_file_or_else_from_the_environment_and_is_never_printed(served, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("key-in-the-file\n")
    monkeypatch.setenv("WEIGHTOPS_API_KEY", "key-in-the-environment")
    for args in ((), ("--api-key-file", file)):
        result = run("serve", "mine", "--host", "0.0.0.0", "--port", 0, *args)
        assert "key-in" not in result.output
    assert [access.keys for _, _, access, _ in served] == [("key-in-the-environment",), ("key-in-the-file",)]
    run("serve", "mine", "--api-key", "key-in-options", "--api-key-file", file, code=2)


def test_the_limits_of_the_command_are_the_servers(served):
    from weightops.guard.serving.limits import Limits

    run("serve", "mine", "--port", 0)
    _, limits, access, openapi = served[0]
    assert limits == Limits()
    assert access.keys == access.names == ()
    assert not openapi
