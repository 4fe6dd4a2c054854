"""One-token rollout: the closed form, what draws tend to, and that a step's draws do not depend on its split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import ROWS, Table, Tokens, gradient, right_logits

from weightops.recipes.floor.objective import ROW_INDEX
from weightops.recipes.objectives import one_token_rollout
from weightops.recipes.objectives.dynamic_tuning import DynamicTuning
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.objectives.one_token_rollout import OneTokenRollout, draw, drawn_cost, expected_cost

INDEXED = [{**row, ROW_INDEX: number} for number, row in enumerate(ROWS)]


def rollout(**parameters):
    return OneTokenRollout(**parameters).ready(None, Tokens(), ROWS)


@settings(max_examples=30)
@given(st.floats(0.3, 3), st.floats(-2, 0.9), st.integers(0, 99))
def test_the_exact_gradient_is_the_closed_form_of_the_card(temperature, beta, seed):
    """-[(1 - beta) q_g (e_g - p) + beta (q - p)], g the right token, q the distribution that is drawn from."""
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, requires_grad=True)
    tokens = torch.arange(5)
    (found,) = torch.autograd.grad(expected_cost(logits, tokens, temperature, beta).sum(), logits)
    p, q, right = logits.softmax(-1), (logits / temperature).softmax(-1), torch.nn.functional.one_hot(tokens, 11)
    q_right = (q * right).sum(-1, keepdim=True)
    torch.testing.assert_close(found, -((1 - beta) * q_right * (right - p) + beta * (q - p)), rtol=1e-3, atol=1e-6)


def test_the_exact_cost_is_the_sum_over_the_vocabulary():
    logits, tokens = torch.randn(4, 7), torch.tensor([0, 3, 6, 2])
    q, log_p = (logits / 1.3).softmax(-1), logits.log_softmax(-1)
    rewards = torch.full((4, 7), -0.1).scatter(1, tokens[:, None], 1.0)
    torch.testing.assert_close(expected_cost(logits, tokens, 1.3, -0.1), -(q * rewards * log_p).sum(-1))


@pytest.mark.parametrize("beta", [-0.5, 0.0, 0.5])
def test_at_temperature_1_it_is_dynamic_fine_tuning_up_to_a_factor(beta):
    model = Table()
    _, exact = gradient(model, rollout(temperature=1.0, beta=beta, exact=True), INDEXED)
    torch.testing.assert_close(exact, (1 - beta) * gradient(model, DynamicTuning(), ROWS)[1], rtol=1e-4, atol=1e-5)


def test_the_mean_over_draws_tends_to_the_exact_gradient_as_one_over_the_root_of_their_number():
    model = Table()
    _, exact = gradient(model, rollout(exact=True), INDEXED)
    off = {}
    for draws in (64, 6400):
        runs = [gradient(model, rollout(draws=draws, seed=seed), INDEXED)[1] - exact for seed in range(12)]
        off[draws] = torch.stack(runs).square().mean().sqrt()
    assert 7 < off[64] / off[6400] < 14


def test_draws_follow_the_distribution_at_their_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    thresholds = ((torch.arange(10_000) + 0.5) / 10_000)[None]
    shares = draw(logits, thresholds, 1.3)[0].bincount(minlength=4) / 10_000
    torch.testing.assert_close(shares, (logits[0] / 1.3).softmax(-1), rtol=0, atol=2e-4)


def test_if_every_draw_is_the_right_token_it_is_plain_fine_tuning():
    logits, tokens = torch.randn(6, 9), torch.arange(6)
    plain = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(drawn_cost(logits, tokens, tokens[:, None].expand(6, 4), -0.1), plain)


def test_draws_depend_on_seed_step_and_row_and_on_nothing_else(monkeypatch):
    model, objective = Table(), rollout(draws=8)
    whole = gradient(model, objective, INDEXED)[1]
    apart = sum(gradient(model, objective, [row])[1] for row in reversed(INDEXED))
    torch.testing.assert_close(apart, whole)
    monkeypatch.setattr(one_token_rollout, "CHUNK", 2)
    torch.testing.assert_close(gradient(model, objective, INDEXED)[1], whole)
    objective.begin_step(1)
    assert not torch.allclose(gradient(model, objective, INDEXED)[1], whole)
    assert not torch.allclose(gradient(model, rollout(draws=8, seed=1), INDEXED)[1], whole)


def test_the_mean_over_rows_weighs_each_row_alike():
    objective = rollout(exact=True, mean="rows")
    rows = [row for row in INDEXED if any(row.get("trained", [True])[1:] or [True])][:3]
    batch = objective.batch(rows)
    apart = [gradient(Table(), rollout(exact=True), [row])[0] / NextToken().learnt_tokens(row) for row in rows]
    torch.testing.assert_close(
        objective.loss(Table(), batch).detach() / objective.items(batch), torch.stack(apart).mean()
    )


def test_rows_held_out_are_measured_by_the_expected_value():
    model, objective = Table(), rollout(draws=1)
    with torch.no_grad():
        measured = objective.loss(model, objective.batch(ROWS))
    logits, tokens = right_logits(model, ROWS)
    torch.testing.assert_close(measured, expected_cost(logits.detach(), tokens, 1.3, -0.1).sum())
    assert not torch.equal(measured, replace(objective, draws=2).loss(model, objective.batch(INDEXED)).detach())
