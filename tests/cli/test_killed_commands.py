"""Commands that write a model: killed while they write, the same command finishes the work and writes the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
from killed_writing import killed_after

PROGRAM = "import sys; from weightops.cli import main; main(sys.argv[1:])"

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


def words(name: str, out: str) -> list[str]:
    return [word.format(out=out) for word in COMMANDS[name]]


def run(folder: Path, *arguments: str) -> int:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_resumes_and_writes_the_same_bytes(name, folder):
    whole, out = f"{name}-whole", f"{name}-out"
    assert run(folder, *words(name, whole)) == 0
    killed_after(4, PROGRAM, *words(name, out), cwd=folder)
    assert not (folder / out).exists()
    assert (folder / f".{out}.weightops").exists()
    assert run(folder, *words(name, out)) == 0
    weights = [{k: v for k, v in tiny.files_of(folder / each).items() if "safetensors" in k} for each in (whole, out)]
    assert weights[0] == weights[1]
    assert not (folder / f".{out}.weightops").exists()
