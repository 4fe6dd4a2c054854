"""An output is a Hugging Face folder: the target's configuration and tokenizer, weights, card and record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
import yaml

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io import staging
from weightops.output import save as saving
from weightops.output.save import carried_files


@pytest.fixture
def models(tmp_path: Path) -> list[wo.Checkpoint]:
    """Two models of one shape, the first with a tokenizer."""
    base = tiny.llama(0)
    folders = [
        tiny.write(tmp_path / f"m{n}", tiny.perturbed(base, n), config={"dtype": "bfloat16", "x": 1}) for n in (0, 1)
    ]
    tiny.tokenizer(folders[0])
    return [wo.open(folder) for folder in folders]


def files(folder: Path) -> set[str]:
    return set(tiny.files_of(folder))


def test_the_tokenizer_and_chat_template_of_the_anchor_go_out_to_the_byte(models, tmp_path):
    a, b = models
    out = (a + 0.5 * (b - a)).save(tmp_path / "out", progress=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tmp_path / "m0" / name).read_bytes()
    assert files(out) == files(tmp_path / "m0") | {"weightops.json", "README.md"}
    assert json.loads((out / "config.json").read_text()) == {"dtype": "bfloat16", "x": 1}


def test_what_belongs_to_other_runs_and_other_weights_stays_behind(models, tmp_path):
    a, b = models
    left = ["trainer_state.json", "training_args.json", "optimizer.pt", "pytorch_model.bin.index.json", "guard.json"]
    carried = [
        "custom_code.py",
        "vocab.bpe",
        "merges.txt",
        "additional_chat_templates/tool.jinja",
        "generation_config.json",
    ]
    (tmp_path / "m0/additional_chat_templates").mkdir()
    for name in [*left, *carried, "weightops.json", "README.md"]:
        (tmp_path / "m0" / name).write_text("old")
    out = (a + (b - a)).save(tmp_path / "out", progress=False)
    assert not files(out) & set(left)
    assert {name: (out / name).read_text() for name in carried} == dict.fromkeys(carried, "old")
    assert "old" not in {(out / name).read_text() for name in ("weightops.json", "README.md")}


def test_an_old_index_does_not_survive_beside_a_single_file(models, tmp_path):
    a, b = models
    sharded = tiny.write(tmp_path / "sharded", tiny.llama(0), shards=3)
    out = (wo.open(sharded) + (b - a)).save(tmp_path / "out", progress=False)
    assert files(out) == {"config.json", "model.safetensors", "weightops.json", "README.md"}
    assert set(tiny.read(out)) == set(tiny.llama(0))


@pytest.mark.parametrize(
    ("config", "dtype", "written"),
    [
        ({"dtype": "bfloat16"}, "float16", {"dtype": "float16"}),
        ({"torch_dtype": "bfloat16"}, "float32", {"torch_dtype": "float32"}),
        ({}, "float16", {"dtype": "float16"}),
        ({"dtype": "bfloat16"}, "auto", {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, "bfloat16", {"dtype": "bfloat16"}),
    ],
)
def test_the_config_says_the_dtype_of_the_weights(config, dtype, written, models, tmp_path):
    (tmp_path / "m0/config.json").write_text(json.dumps({"model_type": "llama"} | config))
    a, b = wo.open(tmp_path / "m0"), models[1]
    out = (a + (b - a)).save(tmp_path / "out", progress=False, dtype=dtype)
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"} | written


def test_integers_keep_their_dtype_whatever_is_asked_for(tmp_path):
    a = wo.open(tiny.write(tmp_path / "m", {"x": torch.ones(3), "n": torch.arange(3)}))
    result = tiny.read(a.save(tmp_path / "out", progress=False, dtype="float16"))
    assert (result["x"].dtype, result["n"].dtype) == (torch.float16, torch.int64)


def test_a_bare_file_makes_a_folder_without_config_or_tokenizer(models, tmp_path):
    bare = wo.open(tmp_path / "m1/model.safetensors")
    out = (bare + (models[0] - models[1])).save(tmp_path / "out", progress=False)
    assert files(out) == {"model.safetensors", "weightops.json", "README.md"}
    assert carried_files(None) == {}


def test_the_card_has_front_matter_that_the_hub_reads(models, tmp_path):
    a, b = models
    text = ((a + 0.5 * (b - a)).save(tmp_path / "out", progress=False) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["merge", "weightops"]}
    assert '"coefficient": 0.5' in body


def test_everything_in_the_way_is_said_at_once(models, tmp_path, monkeypatch):
    a, b = models
    wide = wo.open(tiny.write(tmp_path / "wide", tiny.llama(0, hidden=32)))
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (tmp_path / "out").mkdir()
    with pytest.raises(WeightopsError) as caught:
        (a + (wide - b).only("lm_head")).save(tmp_path / "out", progress=False)
    text = "\n".join(caught.value.problems)
    assert "lm_head.weight: shape (24, 32)" in text
    assert "exists already" in text
    assert len(caught.value.problems) >= 2


def test_a_failure_while_the_small_files_are_written_leaves_nothing_that_looks_finished(models, tmp_path, monkeypatch):
    a, b = models
    write = staging.Staging.write

    def failing(self, name, content):  # type: ignore[no-untyped-def]
        if name == "weightops.json":
            raise OSError(28, "No space left on device")
        write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(staging.Staging, "write", failing)
        (a + (b - a)).save(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    again = (a + (b - a)).save(tmp_path / "out", progress=False)
    assert (again / "weightops.json").exists()
    assert not (tmp_path / ".out.weightops").exists()


def test_a_folder_is_given_back_as_it_was_named(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = models
    out = (a + (b - a)).save("deep/out", progress=False)
    assert out.resolve() == tmp_path / "deep/out"


def while_writing(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something between the last slice and the end of a run."""
    execute = saving.execute

    def executed(*arguments: object, **named: object) -> object:
        tally = execute(*arguments, **named)  # type: ignore[arg-type]
        action()
        return tally

    monkeypatch.setattr(saving, "execute", executed)


@pytest.mark.parametrize("how", ["written in place", "replaced", "touched", "gone", "cut short"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_input_that_changes_while_a_run_reads_it_is_named_and_nothing_is_written(
    how, number, models, tmp_path, monkeypatch
):
    file = tmp_path / f"m{number}/model.safetensors"

    def change() -> None:
        if how == "written in place":
            with open(file, "r+b") as stream:
                stream.seek(-2, 2)
                stream.write(b"xx")
        elif how == "replaced":
            times = file.stat()
            shutil.copy(file, tmp_path / "copy")
            os.utime(tmp_path / "copy", ns=(times.st_atime_ns, times.st_mtime_ns))
            (tmp_path / "copy").rename(file)
        elif how == "touched":
            file.touch()
        elif how == "gone":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size - 2)

    while_writing(monkeypatch, change)
    a, b = models
    with pytest.raises(WeightopsError, match=f"m{number}/model.safetensors: it was changed while it was read"):
        (a + 0.5 * (b - a)).save(tmp_path / "out", progress=False)
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_an_input_that_was_replaced_after_it_was_opened_is_named(models, tmp_path):
    a, b = models
    made = a + 0.5 * (b - a)
    tiny.write(tmp_path / "m1", tiny.llama(3, hidden=32))
    with pytest.raises(WeightopsError, match="m1/model.safetensors: it was changed since it was opened"):
        made.save(tmp_path / "out", progress=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_small_files_are_those_of_the_start_of_a_run(overwrite, models, tmp_path, monkeypatch):
    (tmp_path / "m0/LICENSE").write_text("before")
    while_writing(monkeypatch, lambda: (tmp_path / "m0/LICENSE").write_text("after"))
    a, b = models
    out = (a + (b - a)).save(tmp_path / "out", progress=False, overwrite=overwrite)
    assert (out / "LICENSE").read_text() == "before"


def test_an_output_name_that_is_no_text_is_found_in_the_plan(models, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "execute", lambda *_, **__: pytest.fail("computed"))
    a, b = models
    name = os.fsdecode(b"out-\xff")
    with pytest.raises(WeightopsError, match=r"the output's name is not UTF-8 text"):
        (a + (b - a)).save(tmp_path / name, progress=False)
    with pytest.raises(WeightopsError, match="the recipe is not UTF-8 text"):
        (a + (b - a).without("\ud800")).save(tmp_path / "out", progress=False)


def test_a_config_that_could_not_be_written_again_is_found_on_opening(models, tmp_path):
    (tmp_path / "m0/config.json").write_text('{"a": "\\ud800"}')
    with pytest.raises(WeightopsError, match=r"config.json: not valid JSON \(half a surrogate pair"):
        wo.open(tmp_path / "m0")


def test_small_files_of_many_bytes_are_refused_before_anything_is_computed(models, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "execute", lambda *_, **__: pytest.fail("computed"))
    for number in range(3):
        with open(tmp_path / f"m0/{number}.txt", "wb") as stream:
            stream.truncate(100_000_000)
    a, b = models
    with pytest.raises(WeightopsError, match="100000000 bytes, the limit is"):
        (a + (b - a)).save(tmp_path / "out", progress=False)
