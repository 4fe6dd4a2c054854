import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stateful_objective import Seen
from tiny_chat import ragged_rows, write_chat_model
from transformers import AutoModelForCausalLM

import weightops as wo
from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.recipes.data.packing import pack
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trainer import fit
from weightops.recipes.objectives.discriminative_tuning import DiscriminativeTuning
from weightops.recipes.objectives.exits import Exits
from weightops.recipes.objectives.label_decision import LabelDecision
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.objectives.one_token_rollout import OneTokenRollout
from weightops.recipes.objectives.probability_family import ProbabilityFamily
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora

#: Objectives that differ from step to step, by how a script writes them: they keep state or draw by the step's number.
CHANGING = {
    "Seen(2)": Seen(2),
    "Exits(2, 2, 'drawn')": Exits(2, 2, "drawn"),
    "OneTokenRollout(2, 4)": OneTokenRollout(2, 4),
    "DiscriminativeTuning(2)": DiscriminativeTuning(2),
}
#: An objective of which only the model can tell how many items its loss is the mean of.
KEEPING = {"ProbabilityFamily(2, 1.0, 'above', 0.003)": ProbabilityFamily(2, 1.0, "above", 0.003)}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


PLAIN = ragged_rows(24)
ROWS = [
    {**row, "negatives": [PLAIN[number - 1], PLAIN[number - 2], PLAIN[number - 3]]} for number, row in enumerate(PLAIN)
]
NAME = "model.layers.0.mlp.up_proj.weight"
SHORT = Training(lr=1e-2, epochs=1, precision="fp32", save_dtype="float32", checkpoint_every=0)


def trained(chat_model, out, training=SHORT, rows=ROWS, objective=None, **more):
    return fit(*load(chat_model, "float32"), rows, objective or NextToken(2), training, out, **more)


def weights(folder):
    return load_file(folder / "model.safetensors")


def furthest(one, two):
    return max((value - two[name]).abs().max().item() for name, value in one.items())


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5), st.booleans())
def test_the_learnt_tokens_of_rows_are_the_items_of_their_batches(marks, packed):
    objective, rows = NextToken(2), [{"input_ids": [5] * len(each), "trained": each} for each in marks]
    rows = pack(rows, 20) if packed else rows
    assert sum(map(objective.learnt_tokens, rows)) == objective.items(objective.batch(rows))
    plain = [{"input_ids": row["input_ids"]} for row in rows]
    assert sum(map(objective.learnt_tokens, plain)) == sum(len(row["input_ids"]) - 1 for row in rows)


def test_training_lowers_the_loss_and_moves_only_what_is_not_frozen(chat_model, tmp_path):
    done = trained(chat_model, tmp_path / "out", replace(SHORT, epochs=8, freeze=("embedding", "norm")))
    assert sum(done.losses[-3:]) < 0.8 * sum(done.losses[:3])
    assert len(done.losses) == 24
    before, after = weights(chat_model), weights(tmp_path / "out")
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # no checkpoints left behind


@pytest.mark.parametrize("update", [Full(), Lora(rank=2)])
def test_kept_checkpoints_can_be_averaged_and_the_last_is_the_output(chat_model, tmp_path, update):
    keeping = replace(SHORT, update=update, checkpoint_every=1, keep_checkpoints=True)
    trained(chat_model, tmp_path / "out", keeping)
    kept = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert [each.name for each in kept] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    models = [wo.open(each) if update.whole else wo.open(chat_model) + wo.open_adapter(each) for each in kept]
    out = wo.open(tmp_path / "out") if update.whole else wo.open(chat_model) + wo.open_adapter(tmp_path / "out")
    average, expected = wo.average(models), sum(model.tensor(NAME).float() for model in models) / 3
    assert torch.equal(models[-1].tensor(NAME), out.tensor(NAME))
    torch.testing.assert_close(average.tensor(NAME).float(), expected, rtol=0.01, atol=0.001)
    assert (kept[-1] / "tokenizer_config.json").exists()  # so an average has it, too


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(chat_model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(chat_model, tmp_path / name, replace(SHORT, seed=seed, precision="bf16"))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_gradient_accumulation_equals_the_big_batch_token_by_token(chat_model, tmp_path):
    one_step = replace(SHORT, batch=24)
    whole = trained(chat_model, tmp_path / "whole", one_step)
    parts = trained(chat_model, tmp_path / "parts", replace(one_step, accumulate=4))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)

    class Mean(NextToken):  # the mean of each micro-batch, averaged: what torchtune issue 2307 was about
        def items(self, batch):
            return 1

        def loss(self, model, batch):
            return super().loss(model, batch) / super().items(batch)

    wrong = trained(chat_model, tmp_path / "wrong", replace(one_step, accumulate=4), objective=Mean(2))
    assert abs(wrong.losses[0] - whole.losses[0]) > 1e-3
    # AdamW turns rounding near a zero gradient into a step of up to lr; almost every weight agrees
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert apart.mean() < 1e-5


@pytest.mark.parametrize("written", [*KEEPING, "OneTokenRollout(2, 4)", "DiscriminativeTuning(2)"])
def test_accumulation_does_not_change_what_is_kept_drawn_or_averaged(chat_model, tmp_path, written):
    objective = (CHANGING | KEEPING)[written]
    whole = trained(chat_model, tmp_path / "whole", SHORT, objective=objective)
    parts = trained(chat_model, tmp_path / "parts", replace(SHORT, accumulate=4), objective=objective)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)
    assert parts.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)


def test_masters_are_fp32_under_bf16_and_are_rounded_once(chat_model, tmp_path):
    small = replace(SHORT, lr=1e-6, precision="bf16")  # a step too small for bf16 weights
    trained(chat_model, tmp_path / "fp32", small)
    trained(chat_model, tmp_path / "bf16", replace(small, save_dtype="bfloat16"))
    kept, cut, before = weights(tmp_path / "fp32"), weights(tmp_path / "bf16"), weights(chat_model)
    assert 0 < furthest(kept, {name: value.float() for name, value in before.items()}) < 1e-5
    assert all(torch.equal(kept[name].bfloat16(), cut[name]) for name in kept)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "bf16").dtype == torch.bfloat16


KILLED = """
import os, signal, sys, json, torch
torch.set_num_threads(1)
from pathlib import Path
from stateful_objective import Seen
import weightops
from weightops.recipes.floor import trainer
from weightops.algebra.loading import load
from weightops.recipes.floor.settings import Training
from weightops.recipes.objectives.discriminative_tuning import DiscriminativeTuning
from weightops.recipes.objectives.exits import Exits
from weightops.recipes.objectives.one_token_rollout import OneTokenRollout
from weightops.recipes.objectives.probability_family import ProbabilityFamily
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora
base, out, lora, kill = sys.argv[1:]
def on_step_end(self, args, state, control, **_):
    if state.global_step == int(kill):
        os.kill(os.getpid(), signal.SIGKILL)
trainer._Watch.on_step_end = on_step_end
rows = json.loads(sys.stdin.read())
update = Lora(rank=2, dropout=0.2) if lora == "True" else Full()
training = Training(lr=1e-2, epochs=3, checkpoint_every=2, update=update)
trainer.fit(*load(base, "float32"), rows, Seen(2), training, Path(out))
"""
SUPPORT = {"PYTHONPATH": str(Path(sys.modules[Seen.__module__].__file__).parent)}
"""So that the process finds the objective."""


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "written"), [(True, "Seen(2)"), *((False, written) for written in CHANGING)])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bytes(chat_model, tmp_path, lora, written):
    training = Training(lr=1e-2, epochs=3, checkpoint_every=2, update=Lora(rank=2, dropout=0.2) if lora else Full())
    whole = trained(chat_model, tmp_path / "whole", training, objective=CHANGING[written])
    script = KILLED.replace("Seen(2)", written)
    command = [sys.executable, "-c", script, str(chat_model), str(tmp_path / "out"), str(lora)]
    environment = {**os.environ, **SUPPORT}
    killed = subprocess.run([*command, "5"], input=json.dumps(ROWS), text=True, capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    left = tmp_path / ".out.training"
    assert [folder.name for folder in left.glob("checkpoint-*")] == ["checkpoint-4"]
    (left / "checkpoint-6").mkdir()  # one that was being written when the power went
    (left / "checkpoint-6" / "trainer_state.json").write_text('{"epoch"')
    again = trained(chat_model, tmp_path / "out", training, objective=CHANGING[written])
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert again.losses == whole.losses
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("written", [*CHANGING, *KEEPING])
def test_two_processes_give_the_losses_of_one(chat_model, tmp_path, written):
    script = tmp_path / "script.py"
    there = (
        f"assert os.environ['WORLD_SIZE'] == '2'\nrows = json.loads(Path({str(tmp_path / 'rows.json')!r}).read_text())"
    )
    text = KILLED.replace("Seen(2)", written).replace("rows = json.loads(sys.stdin.read())", there)
    script.write_text(text.replace("checkpoint_every=2", "checkpoint_every=0, precision='fp32'"))
    rows = ROWS[:17]  # of the last step's single row, one process gets nothing
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    # `--cpu` would start one process unless mpirun is there; what --multi_gpu starts keeps to the CPU when told so
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    launch = [accelerate, "launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2", str(script)]
    done = subprocess.run(
        [*launch, str(chat_model), str(tmp_path / "two"), "False", "-1"],
        capture_output=True,
        text=True,
        env={**os.environ, **SUPPORT, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    objective = (CHANGING | KEEPING)[written]
    one = trained(chat_model, tmp_path / "one", replace(SHORT, epochs=3), rows, objective=objective)
    two = json.loads((tmp_path / "two" / "training.json").read_text())
    assert two["losses"] == pytest.approx(one.losses, rel=1e-3)
    assert two["losses"][0] == pytest.approx(one.losses[0], abs=1e-5)


def test_a_run_of_something_else_or_an_output_in_the_way_is_refused(chat_model, tmp_path):
    left = tmp_path / ".out.training"
    left.mkdir()
    (left / "stamp").write_text("another")
    (left / "checkpoint-2").mkdir()
    (left / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(WeightopsError, match="unfinished run of another training"):
        trained(chat_model, tmp_path / "out")
    trained(chat_model, tmp_path / "out", overwrite=True)
    with pytest.raises(WeightopsError, match="exists already"):
        trained(chat_model, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("old")
    with pytest.raises(WeightopsError, match="is not replaced, .*: mine.txt"):
        trained(chat_model, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine.txt").rename(tmp_path / "out" / "vocab.txt")
    trained(chat_model, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "vocab.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_cannot_be_trained_is_said(chat_model, tmp_path):
    class Nan(NextToken):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("nan")

    cases = [
        ({"rows": []}, "no rows"),
        (
            {"objective": LabelDecision()},
            "label_decision: reads input_ids, answer of each row, but rows have no answer",
        ),
        ({"objective": Nan(2)}, "not a number at step 1"),
        ({"training": replace(SHORT, freeze=("nothing_like_it",))}, "matches no parameter"),
        ({"training": replace(SHORT, freeze=(".",))}, "nothing is left to train"),
        ({"training": replace(SHORT, arguments={"gradient_checkpoint": True})}, "gradient_checkpoint: not in"),
        ({"training": replace(SHORT, batch=0)}, "batch: must be at least 1"),
        ({"training": replace(SHORT, update=Lora(targets=("none",)))}, "PEFT refuses"),
    ]
    for more, message in cases:
        with pytest.raises(WeightopsError, match=message):
            trained(chat_model, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_an_adapter_changes_the_answers_and_leaves_the_base_alone(chat_model, tmp_path):
    held = ROWS[:4]
    lora = replace(SHORT, epochs=4, update=Lora(rank=4))
    done = trained(chat_model, tmp_path / "out", lora, held_out=held)
    base, _ = load(chat_model, "float32")
    objective = NextToken(2)
    batch = objective.batch(held)
    assert done.measured["loss"] < 0.95 * objective.loss(base.eval(), batch).item() / objective.items(batch)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert objective.loss(again, batch).item() / objective.items(batch) == pytest.approx(
        done.measured["loss"], abs=1e-4
    )


def test_a_row_that_weighs_twice_as_much_counts_as_two_rows_whatever_the_scale_of_the_weights(chat_model, tmp_path):
    class Heavy(NextToken):
        """Rows weigh what their column says; the loss is divided by the sum of the weights."""

        reads = ("input_ids", "weight")

        def batch(self, rows):
            batch = super().batch(rows)
            weights = torch.tensor([row["weight"] for row in rows])[:, None]
            return {**batch, "weights": (batch["targets"] != -100) * weights}

        def items(self, batch):
            return float(batch["weights"].sum())

        def loss(self, model, batch):
            return -(self.log_probabilities(model, batch) * batch["weights"][batch["targets"] != -100]).sum()

    one_step = replace(SHORT, batch=24)
    light = [{**row, "weight": 0.001 * (number % 3)} for number, row in enumerate(ROWS)]
    heavy = [{**row, "weight": 1000 * row["weight"]} for row in light]
    losses = [
        trained(chat_model, tmp_path / name, replace(one_step, accumulate=parts), rows, Heavy(2)).losses[0]
        for name, rows, parts in (("a", light, 1), ("b", heavy, 1), ("c", light, 4))
    ]
    twice = [row for number, row in enumerate(ROWS) for _ in range(number % 3)]
    plain = trained(chat_model, tmp_path / "d", one_step, twice).losses[0]
    assert losses == pytest.approx([plain] * 3, abs=1e-4)


def test_a_log_gets_the_estimate_in_whole_lines_and_the_recent_loss_is_the_mean_of_ten_steps(
    chat_model, tmp_path, capsys
):
    done = trained(chat_model, tmp_path / "out", replace(SHORT, epochs=5), title="training the guard")
    logged = capsys.readouterr().err
    assert len(done.losses) == 15
    assert done.recent_loss == pytest.approx(sum(done.losses[-10:]) / 10)
    assert "\r" not in logged
    assert re.search(r"^training the guard: 15 steps of about \S+ s, \d+:\d\d in all$", logged, re.MULTILINE)
