"""Only what weightops or transformers wrote is replaced, and only when the new folder is whole."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import tiny_models as tiny

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io.replacing import check_place, put_in_place, refusal


def folder(at: Path, *names: str) -> Path:
    """A folder of empty files."""
    at.mkdir(parents=True, exist_ok=True)
    for name in names:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text("{}")
    return at


MODEL = ("config.json", "model.safetensors", "tokenizer.json", "README.md")


@pytest.mark.parametrize(
    "names",
    [
        (),
        MODEL,
        ("weightops.json",),
        ("weightops.json", "guard.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "LICENSE.txt"),
        ("training.json", "adapter_config.json", "adapter_model.safetensors"),
        ("config.json", "pytorch_model.bin", "training_args.bin", "vocab.txt", "merges.txt", "special_tokens_map.json"),
        (*MODEL, "additional_chat_templates/tools.jinja", "modeling_mine.py", "preprocessor_config.json"),
        (*MODEL, "mergekit_config.yml"),
    ],
)  # fmt: skip
def test_outputs_and_empty_folders_may_be_replaced(names, tmp_path):
    assert refusal(folder(tmp_path / "out", *names)) is None


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("notes.md",), "notes.md"),
        ((*MODEL, "notes.txt"), "it contains files that do not belong to a model: notes.txt"),
        ((*MODEL, "data/rows.jsonl"), "data/"),
        (("weightops.json", ".git/HEAD"), ".git/"),
        ((*MODEL, "additional_chat_templates/deep/x.jinja"), "additional_chat_templates/deep/"),
        ((*MODEL, "thesis.safetensors"), "thesis.safetensors"),
        ((*MODEL, "script.py", "a", "b", "c", "d"), "a, b, c and 2 more"),
        (("config.json", "tokenizer.json"), "it does not contain weights with a configuration"),
        (("model.safetensors",), "it does not contain weights with a configuration"),
        (("README.md", "LICENSE"), "it does not contain weights"),
    ],
)
def test_anything_else_is_kept_and_named(names, says, tmp_path):
    out = folder(tmp_path / "out", *names)
    before = tiny.files_of(tmp_path)
    with pytest.raises(WeightopsError) as caught:
        check_place(out, overwrite=True)
    assert says in str(caught.value)
    with pytest.raises(WeightopsError, match="is not replaced"):
        put_in_place(folder(tmp_path / "new"), out, tmp_path / "aside", overwrite=True)
    assert tiny.files_of(tmp_path) == before


def test_small_files_that_the_record_lists_may_go_and_no_others(tmp_path):
    out = folder(tmp_path / "out", *MODEL, "notes.txt", "x/y.txt")
    (out / "weightops.json").write_text(json.dumps({"files": ["notes.txt", 3, None]}))
    assert "x/" in str(refusal(out))
    (out / "x/y.txt").unlink()
    (out / "x").rmdir()
    assert refusal(out) is None
    for broken in ("{broken", "[]", '{"files": 3}'):
        (out / "weightops.json").write_text(broken)
        assert "notes.txt" in str(refusal(out))


def test_an_output_with_files_that_its_source_brought_along_can_be_made_again(tmp_path):
    model = tiny.write(tmp_path / "model", tiny.llama(0, layers=1))
    (model / "notes.txt").write_text("of the source")
    for _ in range(2):
        wo.open(model).save(tmp_path / "out", overwrite=True, progress=False)
    assert (tmp_path / "out/notes.txt").read_text() == "of the source"


def test_links_and_plain_files_are_kept(tmp_path):
    target = folder(tmp_path / "target", *MODEL)
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").write_text("mine")
    folder(tmp_path / "out", *MODEL)
    (tmp_path / "out/vocab.txt").symlink_to(target / "config.json")
    assert "it is a link" in str(refusal(tmp_path / "link"))
    assert "it is not a folder" in str(refusal(tmp_path / "file"))
    assert "vocab.txt" in str(refusal(tmp_path / "out"))


@pytest.mark.parametrize("here", ["", "additional_chat_templates"])
def test_the_current_folder_and_those_above_it_are_kept(here, tmp_path, monkeypatch):
    out = folder(tmp_path / "out", *MODEL, "additional_chat_templates/x.jinja")
    monkeypatch.chdir(out / here)
    assert "the current folder" in str(refusal(out))
    if not here:
        assert "the current folder" in str(refusal(Path(".")))
    assert refusal(tmp_path) is not None


def test_mount_points_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert "it is a mount point" in str(refusal(folder(tmp_path / "out", *MODEL)))


def test_the_old_output_comes_back_when_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    out, new = folder(tmp_path / "out", *MODEL), folder(tmp_path / "new", "weightops.json")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self == new:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        put_in_place(new, out, tmp_path / "aside", overwrite=True)
    assert sorted(tiny.files_of(out)) == sorted(MODEL)


def test_an_output_that_is_there_needs_overwrite(tmp_path):
    with pytest.raises(WeightopsError, match="exists already"):
        check_place(folder(tmp_path / "out"), overwrite=False)
    check_place(tmp_path / "nothing", overwrite=False)
