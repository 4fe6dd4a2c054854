"""Beyond Log Likelihood and Dynamic Fine-Tuning: closed forms, limits, and TRL's own ``dft`` loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_chat import ragged_rows, write_chat_model
from token_rows import ROWS, Table, Tokens, gradient, right_logits

from weightops.algebra.loading import load
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trainer import fit
from weightops.recipes.objectives.dynamic_tuning import DynamicTuning
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.objectives.probability_family import ProbabilityFamily


def family(**parameters):
    return ProbabilityFamily(**parameters).ready(None, Tokens(), ROWS)


def plain(model):
    return gradient(model, NextToken(), ROWS)


def test_power_0_and_a_threshold_that_keeps_everything_are_plain_fine_tuning_bit_for_bit():
    model = Table()
    for parameters in (
        {"power": 0},
        {"power": 0, "keep": "above", "threshold": 0},
        {"power": 0, "keep": "below", "threshold": 1},
    ):
        for one, other in zip(gradient(model, family(**parameters), ROWS), plain(model), strict=True):
            assert torch.equal(one, other), parameters


def test_small_powers_tend_to_plain_fine_tuning():
    (loss, moved), (expected, expected_moved) = gradient(Table(), family(power=1e-6), ROWS), plain(Table())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved, expected_moved, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(st.floats(0.05, 12), st.sampled_from(["all", "above", "below"]), st.floats(0, 1), st.integers(0, 99))
def test_the_gradient_on_logits_is_p_to_the_power_times_p_minus_one_hot_over_kept_tokens(power, keep, threshold, seed):
    model, objective = Table(seed=seed), family(power=power, keep=keep, threshold=threshold)
    _, moved = gradient(model, objective, ROWS)
    logits, tokens = right_logits(model, ROWS)
    distribution = logits.detach().softmax(-1)
    right = distribution.gather(-1, tokens[:, None])
    kept = {"all": right >= 0, "above": right >= threshold, "below": right <= threshold}[keep]
    of_logits = kept * right**power * (distribution - torch.nn.functional.one_hot(tokens, 40))
    (expected,) = torch.autograd.grad(logits, model.table, of_logits)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("keep", "threshold"), [("above", 0.1), ("below", 0.1), ("above", 1.0), ("all", 0.5)])
def test_the_mean_is_over_the_tokens_that_are_kept(keep, threshold):
    model, objective = Table(), family(power=0, keep=keep, threshold=threshold)
    loss, kept = objective.loss_and_items(model, objective.batch(ROWS))
    logits, tokens = right_logits(model, ROWS)
    cost = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    chosen = {"all": cost >= 0, "above": cost.neg().exp() >= threshold, "below": cost.neg().exp() <= threshold}[keep]
    assert (kept is None) == (keep == "all")
    assert (objective.items(objective.batch(ROWS)) if kept is None else kept.item()) == chosen.sum()
    torch.testing.assert_close(loss, cost[chosen].sum())


def test_dynamic_fine_tuning_has_the_gradient_of_minus_p():
    model = Table()
    (_, dynamic), (_, power) = gradient(model, DynamicTuning(), ROWS), gradient(model, family(power=1), ROWS)
    torch.testing.assert_close(dynamic, power)


@pytest.mark.slow
def test_dynamic_fine_tuning_trains_as_trls_dft_loss_does(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    base = write_chat_model(tmp_path / "base")
    rows = [{**row, "trained": [n > 0 for n in range(len(row["input_ids"]))]} for row in ragged_rows(6)]
    training = Training(lr=1e-3, epochs=3, batch=6, precision="fp32", save_dtype="float32", checkpoint_every=0)
    ours = fit(*load(base, "float32"), rows, DynamicTuning(), training, tmp_path / "ours")
    model, tokenizer = load(base, "float32")
    columns = [{"input_ids": row["input_ids"], "completion_mask": list(map(int, row["trained"]))} for row in rows]
    config = trl.SFTConfig(
        str(tmp_path / "theirs"), loss_type="dft", learning_rate=1e-3, num_train_epochs=3, use_cpu=True, bf16=False,
        per_device_train_batch_size=6, warmup_steps=training.warmup, report_to="none", logging_steps=1,
        save_strategy="no", gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    theirs = trl.SFTTrainer(
        model, config, train_dataset=datasets.Dataset.from_list(columns), processing_class=tokenizer
    )
    theirs.train()
    losses = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert ours.losses == pytest.approx(losses, rel=1e-5)
    trained = load_file(tmp_path / "ours" / "model.safetensors")
    for name, value in theirs.model.state_dict().items():
        if name in trained:
            torch.testing.assert_close(value, trained[name], rtol=1e-4, atol=1e-5)
