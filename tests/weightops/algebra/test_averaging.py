"""The average of a run's checkpoints counts each update as the decay says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import weightops as wo
from weightops.algebra.averaging import DECAYS, decay_weights
from weightops.errors import WeightopsError


@given(st.integers(1, 500), st.sampled_from(sorted(DECAYS)))
def test_weights_are_at_least_zero_sum_to_one_and_count_updates_by_the_decay(count, decay):
    weights = decay_weights(count, decay)
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    counted = [sum(weights[i:]) for i in range(count)]
    assert counted == pytest.approx([DECAYS[decay](i / count) for i in range(count)], abs=1e-9)
    assert counted == sorted(counted, reverse=True)


@given(st.integers(1, 500))
def test_a_linear_decay_is_the_plain_mean(count):
    assert decay_weights(count, "linear") == decay_weights(count, "uniform")
    assert decay_weights(count, "linear") == pytest.approx([1 / count] * count)


@pytest.fixture
def run(tmp_path: Path) -> list[Path]:
    """Four checkpoints of one run, bf16."""
    start = tiny.llama(0)
    return [tiny.write(tmp_path / f"checkpoint-{i}", tiny.perturbed(start, i)) for i in range(4)]


@pytest.mark.parametrize("decay", DECAYS)
def test_the_average_is_that_of_the_formula(decay, run, tmp_path):
    out = wo.average(run, decay=decay).save(tmp_path / "out", progress=False)
    models = [tiny.read(folder) for folder in run]
    weights = decay_weights(4, decay)
    for name, tensor in tiny.read(out).items():
        wanted = sum(c * model[name].double() for c, model in zip(weights, models, strict=True))
        far = (tensor.double() - wanted).abs()
        assert (far <= 2**-8 * wanted.abs() + 1e-6).all(), name  # one rounding to bf16


def test_one_checkpoint_is_itself(run, tmp_path):
    out = wo.average(run[:1]).save(tmp_path / "out", progress=False)
    assert all(tiny.same_bytes(t, tiny.read(run[0])[name]) for name, t in tiny.read(out).items())


def test_checkpoints_come_in_the_order_of_their_steps(run):
    for folder, step in zip(run, (1000, 200, 600, 400), strict=True):
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    shuffled = wo.average(run, decay="cosine")
    ordered = wo.average([run[1], run[3], run[2], run[0]], decay="cosine")
    name = "model.norm.weight"
    assert torch.equal(shuffled.tensor(name), ordered.tensor(name))
    assert shuffled.source.spec == str(run[0])


def test_other_tensors_other_shapes_no_checkpoints_and_no_such_decay(run, tmp_path):
    fewer = {name: t for name, t in tiny.llama(1).items() if name != "model.norm.weight"}
    with pytest.raises(WeightopsError, match=r"model.norm.weight: only in .*checkpoint-0"):
        wo.average([run[0], tiny.write(tmp_path / "fewer", fewer)])
    with pytest.raises(WeightopsError, match=r"lm_head.weight: shape \(24, 16\)"):
        wo.average([run[0], tiny.write(tmp_path / "wider", tiny.llama(1, vocab=30))])
    with pytest.raises(WeightopsError, match="no checkpoints"):
        wo.average([])
    with pytest.raises(WeightopsError, match="unknown decay 'exp'; available: linear"):
        wo.average(run, decay="exp")
