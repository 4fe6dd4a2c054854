"""Disperse-then-Merge end to end on a tiny model: what is merged, resumed, left out and measured."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.algebra.opening import open_checkpoint
from weightops.cli import main
from weightops.errors import WeightopsError
from weightops.recipes.data.source import load_rows, split
from weightops.recipes.dispersing.by_length import ByLength
from weightops.recipes.dispersing.by_source import BySource
from weightops.recipes.floor import trainer
from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.parts.disperse import Dispersal
from weightops.recipes.routines.disperse_then_merge import DisperseThenMergeRecipe, run
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora
from weightops.recipes.updates.sparse import Sparse
from weightops.rows.encode import encode


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def recipe(chat_model, tmp_path):
    rows = [{"prompt": f"what is {n}?", "completion": "safe" * (1 + n % 3), "task": "abc"[n % 3]} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    update = Lora(4, 4.0, 0.0, ("gate_proj", "up_proj", "down_proj"))
    training = Training(lr=1e-2, epochs=2, batch=4, precision="fp32", save_dtype="float32", update=update)
    data = Data((str(tmp_path / "rows.jsonl"),), held_out=0.2)
    return DisperseThenMergeRecipe(str(chat_model), data, tokens=128, training=training, disperse=Dispersal(3))


@pytest.fixture
def trainings(monkeypatch):
    """The titles of the trainings that were begun."""
    titles, fit = [], trainer.fit

    def counted(*args, **kwargs):
        titles.append(kwargs["title"])
        return fit(*args, **kwargs)

    monkeypatch.setattr(trainer, "fit", counted)
    return titles


def report_of(out):
    return json.loads((out.parent / f"{out.name}-parts" / "report.json").read_text())


def mean_of_models(base, folders, shares, whole=False):
    """base + sum of shares times each sub-model's change, in fp64, from the written sub-models."""
    start = {name: open_checkpoint(base).tensor(name).double() for name in open_checkpoint(base).names}
    made = dict(start)
    for folder, share in zip(folders, shares, strict=True):
        if whole:
            change = {name: open_checkpoint(folder).tensor(name).double() - start[name] for name in start}
        else:
            factors = {name: t.double() for name, t in load_file(folder / "adapter_model.safetensors").items()}
            change = {
                name.removeprefix("base_model.model.").replace(".lora_A", ""): factors[name.replace("lora_A", "lora_B")] @ a
                for name, a in factors.items() if "lora_A" in name
            }  # fmt: skip
        made = {name: tensor + share * change.get(name, 0) for name, tensor in made.items()}
    return made


@pytest.mark.parametrize("whole", [False, True])
def test_the_merged_model_is_the_base_plus_the_mean_of_the_sub_models_changes(recipe, tmp_path, whole):
    if whole:
        recipe = replace(recipe, training=replace(recipe.training, update=Full(), lr=1e-3))
    done = run(recipe, tmp_path / "out")
    folders = [tmp_path / "out-parts" / f"part-{number}" for number in range(3)]
    expected = mean_of_models(recipe.base, folders, [1 / 3] * 3, whole)
    merged = open_checkpoint(tmp_path / "out")
    for name, tensor in expected.items():
        rounding = torch.finfo(merged.tensor(name).dtype).eps * tensor.abs().max()
        assert (merged.tensor(name).double() - tensor).abs().max() <= rounding, name
    changed = [
        name for name in merged.names if not torch.equal(merged.tensor(name), open_checkpoint(recipe.base).tensor(name))
    ]
    assert all("mlp" in name for name in changed) or whole
    assert changed
    assert set(done.measured) == {"base", "part 0", "part 1", "part 2", "merged"}
    assert done.measured["merged"] < done.measured["base"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_sparse_parts_merge_as_the_deltas_that_they_are(recipe, tmp_path):
    update = Sparse(0.05, select="random")
    run(replace(recipe, training=replace(recipe.training, update=update)), tmp_path / "out")
    base, merged = open_checkpoint(recipe.base), open_checkpoint(tmp_path / "out")
    parts = [open_checkpoint(f"{recipe.base}+{tmp_path}/out-parts/part-{number}") for number in range(3)]
    expected = base
    for part in parts:
        expected = expected + (1 / 3) * (part - base)
    changed = [name for name in base.names if not torch.equal(merged.tensor(name), base.tensor(name))]
    assert changed
    assert all(torch.equal(merged.tensor(name), expected.tensor(name)) for name in base.names)


def test_what_is_measured_is_the_loss_of_the_models_that_are_written(recipe, tmp_path):
    done = run(recipe, tmp_path / "out")
    report = report_of(tmp_path / "out")
    assert report["held_out_loss"] == pytest.approx(done.measured)
    _, held_out = split(load_rows(recipe.data), 0.2, 0)
    specs = {"merged": tmp_path / "out", "base": recipe.base, "part 1": f"{recipe.base}+{tmp_path}/out-parts/part-1"}
    for name, spec in specs.items():
        model, tokenizer = load(spec, "float32")
        loss = trainer.measure(model, encode(tokenizer, held_out, 128), NextToken().ready(model, tokenizer, ()), 4)[
            "loss"
        ]
        assert loss == pytest.approx(done.measured[name], abs=1e-5), name


def test_parts_hold_the_rows_of_the_dispersal_and_the_same_run_gives_the_same_bytes(recipe, tmp_path):
    recipe = replace(recipe, disperse=Dispersal(3, ByLength()), weigh="rows")
    for name in ("one", "two"):
        run(recipe, tmp_path / name)
    one, two = (tiny.files_of(tmp_path / name) for name in ("one", "two"))
    assert one["model.safetensors"] == two["model.safetensors"]
    parts = report_of(tmp_path / "one")["parts"]
    assert sum(part["rows"] for part in parts) == 24
    assert [part["share_of_merge"] for part in parts] == [part["rows"] / 24 for part in parts]
    logs = [json.loads((tmp_path / "one-parts" / f"part-{n}" / "training.json").read_text()) for n in range(3)]
    assert [log["rows"] for log in logs] == [part["rows"] for part in parts]


def test_tokens_weigh_what_is_learnt(recipe, tmp_path):
    recipe = replace(recipe, disperse=Dispersal(3, BySource("task")), weigh="tokens")
    run(replace(recipe, training=replace(recipe.training, epochs=1)), tmp_path / "out")
    parts = report_of(tmp_path / "out")["parts"]
    total = sum(part["tokens"] for part in parts)
    assert [part["share_of_merge"] for part in parts] == pytest.approx([part["tokens"] / total for part in parts])
    per_row = sorted(part["tokens"] / part["rows"] for part in parts)
    assert per_row == [2, 3, 4]  # "safe" once, twice, three times, and the token that ends the turn


KILLED = """
import os, signal, sys
from weightops.recipes.catalog import read, run
from weightops.recipes.routines import disperse_then_merge as routine
train = routine.train
def killed(*args, **kwargs):
    if kwargs["title"].startswith("part 1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return train(*args, **kwargs)
routine.train = killed
from pathlib import Path
run(read(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_run_killed_between_parts_resumes_and_trains_no_part_twice(recipe, tmp_path, trainings):
    text = f"""recipe: disperse_then_merge
base: {recipe.base}
data: {{files: [{recipe.data.files[0]}], held_out: 0.2}}
tokens: 128
disperse: {{parts: 3}}
training:
  {{lr: 1e-2, epochs: 2, batch: 4, schedule: linear, clip: 1.0, precision: fp32, save_dtype: float32,
    update: {{kind: lora, rank: 4, alpha: 4, targets: [gate_proj, up_proj, down_proj]}}}}
"""
    (tmp_path / "mine.yaml").write_text(text)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "mine.yaml"), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "out-parts").iterdir()) == ["part-0"]
    run(recipe, tmp_path / "out")
    assert [title[:6] for title in trainings] == ["part 1", "part 2"]
    run(recipe, tmp_path / "whole")
    same = [tiny.files_of(tmp_path / name)["model.safetensors"] for name in ("out", "whole")]
    assert same[0] == same[1]


def test_another_way_to_weigh_trains_nothing_again_and_other_rows_do(recipe, tmp_path, trainings):
    run(recipe, tmp_path / "out")
    with pytest.raises(WeightopsError, match="exists already"):
        run(recipe, tmp_path / "out")
    run(replace(recipe, weigh="rows"), tmp_path / "out", overwrite=True)
    assert len(trainings) == 3
    fewer = replace(recipe, disperse=Dispersal(2))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightopsError, match="part-0: was trained on other rows or with other settings; .*overwrite"):
        run(fewer, tmp_path / "out")
    run(fewer, tmp_path / "out", overwrite=True)
    assert len(trainings) == 5
    assert sorted(path.name for path in (tmp_path / "out-parts").iterdir()) == ["part-0", "part-1", "report.json"]


@dataclass(frozen=True)
class Poisoned(NextToken):
    """The loss of rows of one length is not a number: those whose answer is longest."""

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss * math.nan if (batch["targets"] != -100).sum(1).max() == 4 else loss


def test_a_part_that_diverged_is_named_and_the_others_are_merged(recipe, tmp_path, capsys):
    recipe = replace(
        recipe, disperse=Dispersal(3, BySource("task")), objective=Poisoned(), data=replace(recipe.data, held_out=0.0)
    )
    done = run(recipe, tmp_path / "out")
    bad = [part["number"] for part in report_of(tmp_path / "out")["parts"] if part["problem"]]
    assert len(bad) == 1
    assert (
        f"part {bad[0]} is left out of the merge: part {bad[0]} of 0 to 2: the loss is not a number"
        in capsys.readouterr().err
    )
    kept = [tmp_path / "out-parts" / f"part-{number}" for number in range(3) if number not in bad]
    assert sorted(path.name for path in (tmp_path / "out-parts").iterdir()) == [
        *(path.name for path in kept),
        "report.json",
    ]
    expected, merged = mean_of_models(recipe.base, kept, [0.5, 0.5]), open_checkpoint(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(merged.tensor(name).double(), expected[name], atol=1e-2)
    assert done.measured == {}


def test_where_every_part_diverges_nothing_is_written(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(NextToken, "loss", lambda self, model, batch: model(batch["input_ids"]).logits.sum() * math.nan)
    with pytest.raises(WeightopsError, match="the training of every part failed"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_left_out_too(recipe, tmp_path, capsys):
    run(recipe, tmp_path / "out")
    file = tmp_path / "out-parts" / "part-2" / "adapter_model.safetensors"
    tensors = load_file(file)
    tiny.save_file({name: tensor * math.nan for name, tensor in tensors.items()}, file)
    run(recipe, tmp_path / "out", overwrite=True)
    assert "part 2: its weights are not numbers" in capsys.readouterr().err
    assert [part["share_of_merge"] for part in report_of(tmp_path / "out")["parts"]] == [0.5, 0.5, 0.0]


def test_parts_never_go_where_other_things_lie(recipe, tmp_path, trainings):
    (tmp_path / "out-parts").mkdir()
    for name, content in (("notes.txt", "mine"), ("report.json", '{"kind": "weightops disperse"}')):
        (tmp_path / "out-parts" / name).write_text(content)
        before = tiny.files_of(tmp_path / "out-parts")
        with pytest.raises(WeightopsError, match="the parts belong there; choose another output"):
            run(recipe, tmp_path / "out", overwrite=True)
        assert tiny.files_of(tmp_path / "out-parts") == before
        (tmp_path / "out-parts" / name).unlink()
    assert trainings == []


def test_several_processes_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WeightopsError, match="runs in one process.*set launch to with_accelerate"):
        run(recipe, tmp_path / "out")


def test_the_shipped_recipe_runs_from_the_command_line(recipe, tmp_path):
    sets = [f"base={recipe.base}", f"data.files={recipe.data.files[0]}", "disperse.parts=2", "tokens=128"]
    args = [word for each in sets for word in ("--set", each)]
    done = CliRunner().invoke(main, ["train", "disperse-then-merge", *args, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "on held-out rows: base" in done.stdout
    assert ", merged " in done.stdout
    wrong = CliRunner().invoke(main, ["train", "disperse-then-merge", *args, "--set", "disperse.method=by_kmeans"])
    assert "needs embeddings; name an encoder" in wrong.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
