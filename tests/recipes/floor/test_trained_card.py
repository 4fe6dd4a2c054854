"""What training writes says in the hub's format what it is, what it was made of, and how it is used."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.io.gguf import ALIASES, Alias
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trained_card import Trained, figure, hub_base, trained_card
from weightops.recipes.floor.trainer import fit
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.updates.lora import Lora

SHORT = Training(lr=1e-2, epochs=1, precision="fp32", save_dtype="float32", checkpoint_every=0)
ROWS = [{"input_ids": list(range(3 + row, 12 + row))} for row in range(12)]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def trained(chat_model, out, training, name=None):
    model, tokenizer = load(chat_model, "float32")
    if name:
        model.name_or_path = model.config.name_or_path = name
    return fit(model, tokenizer, ROWS[:8], NextToken(2), training, out, title="tuning", held_out=ROWS[8:])


def python_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.parametrize("update", [None, Lora(2, 4.0)], ids=["full", "lora"])
def test_the_card_is_the_hubs_and_its_code_runs(update, chat_model, tmp_path, monkeypatch, capsys):
    training = SHORT if update is None else replace(SHORT, update=update)
    done = trained(chat_model, tmp_path / "out", training)
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text).data
    assert card.base_model is None  # a local folder is no id on the hub
    assert card.library_name == ("transformers" if update is None else "peft")
    assert "8 rows, 1 steps" in text
    assert f"| loss | {done.measured['loss']:.4g} |" in text
    settings = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert settings["lr"] == 1e-2
    assert settings["update"]["kind"] == ("full" if update is None else "lora")
    monkeypatch.chdir(tmp_path / "out")
    scope = {}
    exec(python_of(text), scope)
    assert isinstance(scope["model"], torch.nn.Module)


def test_an_adapter_names_its_base_as_the_hub_does_and_is_opened_by_itself(chat_model, tmp_path, monkeypatch):
    from weightops.algebra import opening
    from weightops.algebra.opening import open_checkpoint

    monkeypatch.setitem(ALIASES, "tiny", Alias("tiny", "t.gguf", package="tiny", hub="org/tiny"))
    monkeypatch.setattr(opening, "alias_file", lambda alias: chat_model)
    monkeypatch.setattr(opening, "dequantised", lambda path, name=None: chat_model)
    model, tokenizer = load("tiny", "float32")
    assert model.name_or_path == "org/tiny"
    fit(model, tokenizer, ROWS, NextToken(2), replace(SHORT, update=Lora(2, 4.0)), tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    data = ModelCard((tmp_path / "out/README.md").read_text()).data
    assert (data.base_model, data.get("base_model_relation")) == ("org/tiny", "adapter")
    assert data.license is None  # the data decide it too
    alone = open_checkpoint(tmp_path / "out")
    assert alone.spec == f"tiny+{tmp_path / 'out'}"
    assert alone.delta.names


def test_only_what_is_no_folder_is_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_base("org/name") == "org/name"
    (tmp_path / "org/name").mkdir(parents=True)
    assert [hub_base(name) for name in ("org/name", "./x/y", "/x/y", "org/a+org/b", "")] == [None] * 5


def test_hostile_names_do_nothing_and_figures_that_do_not_exist_are_dashes(tmp_path):
    (tmp_path / "guard.json").write_text("{}")
    known = Trained("<b>`x`|", "training", 1, 1, 1, NextToken(2), SHORT, {"loss": math.nan})
    text = trained_card(known, tmp_path)
    assert "<b>" not in text.split("---\n", 2)[2]
    assert "| loss | - |" in text
    assert figure(math.inf) == "-"
    assert "weightops guard score ." in text
