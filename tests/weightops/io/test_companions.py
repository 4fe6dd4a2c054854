"""Whatever reads, downloads, converts or writes a model keeps the same small files beside the weights."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from weightops.io.companions import companions, download_patterns, is_companion
from weightops.io.pickled import converted
from weightops.io.tokenizer import FILES
from weightops.output.save import carried_files

KEPT = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "vocab.bpe"),
    *("tokenizer.model", "source.spm", "qwen.tiktoken", "chat_template.jinja", "modeling_own.py", "LICENSE", "NOTICE"),
    *("License.md", "LICENSE.txt", "additional_chat_templates/tool.jinja"),
]
LEFT = ["optimizer.pt", "model.bin", "README.md", "model.safetensors.index.json", "other/tool.jinja", "notes.md"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of pickled weights with all of these files beside them."""
    for name in (*KEPT, *LEFT):
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    torch.save({"w": torch.ones(2)}, tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


def test_the_files_that_go_along(folder):
    assert {path.relative_to(folder).as_posix() for path in companions(folder)} == set(KEPT)


def test_converting_pickled_weights_keeps_every_file_that_an_output_would_carry(folder):
    new = converted(folder)
    assert carried_files(new) == carried_files(folder)
    assert set(carried_files(folder)) == set(KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_the_hub_is_asked_for_every_file_that_goes_along(name):
    assert any(fnmatch(name, pattern) for pattern in download_patterns())


@pytest.mark.parametrize("pattern", FILES)
def test_a_tokenizer_has_no_file_that_does_not_go_along(pattern):
    *folders, name = pattern.replace("*", "x").split("/")
    assert is_companion(name)
    assert folders in ([], ["additional_chat_templates"])
