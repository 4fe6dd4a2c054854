"""Commands that write a model: killed while they write, the same command finishes the work and writes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny

KILLED = """
import os, signal, sys
from weightops.cli import main
from weightops.io import staging
staging._FLUSH_SECONDS = 0.0
left, record = [4], staging.Staging.record
def killing(self, entry):
    record(self, entry)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
staging.Staging.record = killing
main(sys.argv[1:])
"""

MOE = """
base_model: one
gate_mode: random
dtype: bfloat16
experts:
  - source_model: one
  - source_model: two
"""

COMMANDS = {
    "moe": ("moe", "experts.yml", "{out}"),
    "layershuffle": ("layershuffle", "{out}", "-m", "one", "-m", "two", "--seed", "3"),
    "transplant-tokenizer": ("transplant-tokenizer", "one", "two", "{out}", "-k", "4"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models of one architecture."""
    folder = tmp_path_factory.mktemp("killed")
    for seed, name in enumerate(("one", "two")):
        tiny.transformer(folder / name, "llama", tied=False, seed=seed)
    (folder / "experts.yml").write_text(MOE)
    return folder


def run(folder: Path, words: tuple[str, ...], out: str, program: tuple[str, ...]) -> int:
    arguments = [word.format(out=out) for word in words]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, *program, *arguments], cwd=folder, env=environment, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_resumes_and_writes_the_same_bytes(name, folder):
    finishing = ("-c", "import sys; from weightops.cli import main; main(sys.argv[1:])")
    whole, out = f"{name}-whole", f"{name}-out"
    assert run(folder, COMMANDS[name], whole, finishing) == 0
    assert run(folder, COMMANDS[name], out, ("-c", KILLED)) == -signal.SIGKILL
    assert not (folder / out).exists()
    assert (folder / f".{out}.weightops").exists()
    assert run(folder, COMMANDS[name], out, finishing) == 0
    weights = [{k: v for k, v in tiny.files_of(folder / each).items() if "safetensors" in k} for each in (whole, out)]
    assert weights[0] == weights[1]
    assert not (folder / f".{out}.weightops").exists()
