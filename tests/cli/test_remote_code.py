"""Python code in a model's folder runs only where ``--trust-remote-code`` is given, also on a terminal that says yes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import judge

CODE = """
import os
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path(os.environ["MARKER"]).write_text("the code ran")


class OddConfig(LlamaConfig):
    model_type = "odd"


class OddModel(LlamaForCausalLM):
    config_class = OddConfig


class OddTokenizerFast(PreTrainedTokenizerFast):
    def __init__(self, *args, vocab_file=None, **more):
        super().__init__(*args, **more)
"""
RECIPE = """
recipe: sft
base: {model}
data: {{files: {data}}}
tokens: 16
training: {{epochs: 1, batch: 4}}
"""
MERGE = """
merge_method: linear
models: [{{model: {model}, parameters: {{weight: 1}}}}]
tokenizer: {{source: {model}, pad_to_multiple_of: 64}}
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A guard whose config and tokenizer say that they need its own code; the older vocabulary has no tokenizer.json."""
    folder = write_chat_model(tmp_path_factory.mktemp("odd") / "odd")
    (folder / "odd_code.py").write_text(CODE)
    _change(folder / "config.json", model_type="odd", architectures=["OddModel"],
            auto_map={"AutoConfig": "odd_code.OddConfig", "AutoModelForCausalLM": "odd_code.OddModel"})  # fmt: skip
    _change(folder / "tokenizer_config.json", tokenizer_class="OddTokenizerFast",
            auto_map={"AutoTokenizer": [None, "odd_code.OddTokenizerFast"]})  # fmt: skip
    GuardCard("", ("safe", "unsafe"), (260, 261)).write(folder)
    return folder


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def weightops(tmp_path):
    """Run weightops in a process whose terminal has said yes to every question; its output, code, whether code ran."""

    def run(*args: object, timeout: int = 300) -> tuple[int, str, bool]:
        marker, (above, below) = tmp_path / "marker", pty.openpty()
        os.write(above, b"y\n" * 20)
        environment = {**os.environ, "MARKER": str(marker), "HF_MODULES_CACHE": str(tmp_path / "modules")}
        command = [sys.executable, "-c", "from weightops.cli import main; main()", *map(str, args)]
        try:
            done = subprocess.run(
                command, stdin=below, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
                timeout=timeout, check=False,
            )  # fmt: skip
        finally:
            os.close(above)
            os.close(below)
        ran = marker.exists()
        marker.unlink(missing_ok=True)
        return done.returncode, done.stdout, ran

    return run


def commands(odd: Path, folder: Path) -> dict[str, list[object]]:
    """A command of each kind that loads a model through transformers."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"safe words {n}", "label": "safe"}) + "\n" for n in range(4)))
    labelled = folder / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({"text": f"{n}", "label": n}) + "\n" for n in ("safe", "unsafe")))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=odd, data=rows))
    older = Path(shutil.copytree(odd, folder / "older"))
    vocabulary = json.loads((older / "tokenizer.json").read_text())["model"]
    (older / "tokenizer.json").unlink()
    (older / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    (older / "merges.txt").write_text("\n".join(" ".join(pair) for pair in vocabulary["merges"]))
    (folder / "merge.yaml").write_text(MERGE.format(model=older))
    return {
        "score": ["guard", "score", odd, "is this safe"],
        "eval": ["guard", "eval", odd, labelled],
        "train": ["train", folder / "recipe.yaml", "--out", folder / "trained"],
        "merge": ["merge", folder / "merge.yaml", folder / "merged"],
    }


@pytest.mark.parametrize(
    "kind",
    ["score", pytest.param("eval", marks=pytest.mark.slow), pytest.param("train", marks=pytest.mark.slow), "merge"],
)
def test_code_of_a_model_runs_only_when_it_is_trusted_on_purpose(weightops, odd, tmp_path, kind):
    command = commands(odd, tmp_path)[kind]
    code, output, ran = weightops(*command)
    assert not ran, output
    assert (code, output.count("error:"), "Traceback" in output) == (1, 1, False), output
    assert "auto_map asks to run Python code" in output
    assert ("tokenizer_config.json" if kind == "merge" else "config.json") in output
    _, output, ran = weightops(*command, "--trust-remote-code")
    assert ran, output


@pytest.mark.slow
def test_trusted_code_scores_texts(weightops, odd):
    code, output, _ = weightops("guard", "score", odd, "is this safe", "--trust-remote-code")
    assert code == 0, output
    assert "is this safe" in output


def test_the_server_and_recipes_have_no_such_option(weightops, odd, tmp_path):
    code, output, ran = weightops("guard", "serve", odd, "--trust-remote-code")
    assert (code, ran) == (2, False)
    assert "No such option" in output
    code, output, ran = weightops("guard", "serve", odd, "--port", 0)
    assert (code, ran) == (1, False)
    assert "auto_map asks to run Python code" in output
    commands(odd, tmp_path)
    with open(tmp_path / "recipe.yaml", "a") as file:
        file.write("trust_remote_code: true\n")
    code, output, ran = weightops("train", tmp_path / "recipe.yaml", "--out", tmp_path / "trained")
    assert (code, ran) == (1, False)
    assert "trust_remote_code" in output


@pytest.mark.slow
def test_the_mergekit_engine_runs_no_code_either(weightops, odd, tmp_path):
    pytest.importorskip("mergekit")
    (tmp_path / "merge.yaml").write_text(MERGE.format(model=odd))
    command = ["merge", tmp_path / "merge.yaml", tmp_path / "merged", "--engine", "mergekit"]
    code, output, ran = weightops(*command)
    assert (code, ran) == (1, False), output
    _, output, ran = weightops(*command, "--trust-remote-code")
    assert ran, output


def test_in_python_code_runs_only_with_the_keyword(odd, tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    with pytest.raises(WeightopsError, match=r"config.json and .*tokenizer_config.json: auto_map asks to run"):
        judge(odd, ["is this safe"])
    assert not (tmp_path / "marker").exists()
