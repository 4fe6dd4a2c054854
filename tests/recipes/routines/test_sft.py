"""Supervised fine-tuning: only answers are learned, packed or not, in full or as an adapter."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.cli import main
from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.objectives.label_decision import LabelDecision
from weightops.recipes.routines.sft import SftRecipe, _check_window, run
from weightops.recipes.updates.lora import Lora

PAIRS = [{"prompt": f"what is {number}" + "?" * number, "completion": "safe"} for number in range(12)]


@dataclass(frozen=True)
class Pairs(LabelDecision):
    reads: ClassVar = ("chosen_ids", "rejected_ids")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def recipe(chat_model, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    training = Training(lr=1e-2, epochs=6, batch=4, precision="fp32", save_dtype="float32")
    return SftRecipe(str(chat_model), Data((str(tmp_path / "rows.jsonl"),)), tokens=128, training=training)


def answer(folder, prompt):
    model, tokenizer = load(folder, "float32")
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    made = model.eval().generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=False)


def test_a_tuned_model_answers_as_its_rows_do_and_every_part_of_it_moved(recipe, tmp_path):
    longer = replace(recipe, data=replace(recipe.data, held_out=0.25), training=replace(recipe.training, epochs=20))
    done = run(longer, tmp_path / "out")
    assert answer(tmp_path / "out", "what is 5?").startswith("safe<|im_end|>")
    assert set(done.measured) == {"loss"}
    assert done.measured["loss"] < 0.1 * done.losses[0]
    before, after = load_file(f"{recipe.base}/model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name in before if torch.equal(before[name].float(), after[name])] == []


def test_what_is_asked_costs_nothing_and_only_the_answer_is_learned(recipe, tmp_path):
    one_step = replace(recipe.training, epochs=1, batch=12)
    done = run(replace(recipe, training=one_step), tmp_path / "out")
    model, tokenizer = load(recipe.base, "float32")
    costs = []
    for row in PAIRS:
        prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        answer_ids = tokenizer.encode("safe<|im_end|>", add_special_tokens=False)
        log_probabilities = model.eval()(torch.tensor([ids + answer_ids])).logits[0].log_softmax(-1)
        costs += [-log_probabilities[len(ids) - 1 + place, token].item() for place, token in enumerate(answer_ids)]
    assert done.losses[0] == pytest.approx(sum(costs) / len(costs), abs=1e-4)


def test_packed_rows_cost_what_they_cost_apart(recipe, tmp_path):
    one_step = replace(recipe.training, epochs=1, batch=12, lr=1e-5)
    apart = run(replace(recipe, training=one_step), tmp_path / "apart")
    packed = run(replace(recipe, training=one_step, packing=True), tmp_path / "packed")
    assert packed.losses == pytest.approx(apart.losses, abs=1e-4)
    logs = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("apart", "packed")]
    assert logs[0]["rows"] == 12
    assert logs[1]["rows"] < 9
    assert [log["learnt_tokens"] for log in logs] == [24, 24]  # "safe" and the token that ends the turn
    assert logs[0]["total_tokens"] == logs[1]["total_tokens"] > 12 * 10


def test_an_adapter_is_all_that_is_written_where_it_is_what_moves(recipe, tmp_path):
    run(replace(recipe, training=replace(recipe.training, update=Lora(4), epochs=10)), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "training.json",
    }  # fmt: skip
    assert answer(f"{recipe.base}+{tmp_path / 'out'}", "what is 5?").startswith("safe")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"model_class": "image-text-to-text"}, "model_class: image-text-to-text is not available yet; use causal-lm"),
        (
            {"packing": True, "objective": LabelDecision()},
            "packing: objective label_decision does not keep packed rows",
        ),
        (
            {"objective": Pairs()},
            "objective: pairs reads chosen_ids, rejected_ids, which sft does not make; use the rou",
        ),
        ({"objective": LabelDecision()}, "objective label_decision reads answer of each row, but no row has it"),
        ({"tokens": 1}, "tokens: must be at least 2"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, tmp_path, more, problem):
    with pytest.raises(WeightopsError, match=problem):
        run(replace(recipe, **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_rows_longer_than_a_models_window_are_refused(chat_model):
    model, _ = load(chat_model, "float32")
    _check_window(model, 128)
    model.config.sliding_window = 64
    _check_window(model, 64)
    with pytest.raises(WeightopsError, match="window of 64 tokens; set tokens to at most 64"):
        _check_window(model, 65)


def test_the_shipped_recipe_trains_on_messages_from_the_command_line(recipe, tmp_path):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "safe"}]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 10)
    sets = [f"--set=base={recipe.base}", f"--set=data.files={tmp_path / 'chats.jsonl'}", "--set=training.epochs=1"]
    for name in ("sft", "sft-lora"):
        done = CliRunner().invoke(main, ["train", name, *sets, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "on held-out rows: loss" in done.stdout
    assert (tmp_path / "sft" / "model.safetensors").exists()
    assert (tmp_path / "sft-lora" / "adapter_model.safetensors").exists()
