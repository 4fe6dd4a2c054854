"""Fused forms that compute exponentials: they equal their references although no two libraries round those alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds
from merge_jobs import merge_job, raw, reference, run

from weightops.engine.fused.exponentials import exponentials, tanhs
from weightops.engine.fused.row_divergence import _divergences
from weightops.errors import WeightopsError
from weightops.ops.arcee_fusion import divergence


@given(seed=seeds, size=st.sampled_from([1e-3, 0.3, 30.0, 900.0]))
@settings(max_examples=20, deadline=None)
def test_exponentials_are_numpys_within_three_ulps(seed, size):
    numbers = np.random.default_rng(seed).uniform(-size, min(size, 690.0), 500)
    found, expected = numbers.copy(), np.exp(numbers.clip(-700))
    exponentials(found, np.empty(500))
    assert (np.abs(found - expected) <= 3 * np.spacing(expected)).all()


@given(seed=seeds, size=st.sampled_from([1e-9, 1e-3, 1 / 16, 1.0, 40.0]))
@settings(max_examples=20, deadline=None)
def test_tanhs_are_the_c_librarys_within_two_ulps(seed, size):
    numbers = np.random.default_rng(seed).uniform(-size, size, 500)
    found, expected = numbers.copy(), np.array([math.tanh(number) for number in numbers])
    tanhs(found)
    assert (np.abs(found - expected) <= 2 * np.spacing(np.abs(expected))).all()


@pytest.mark.parametrize("change", [1e-6, 1e-4, 1e-2, 1.0, 300.0])
def test_the_divergences_of_rows_are_the_references_but_for_one_of_a_thousand(change):
    base = 0.02 * normal(0, 2000, 77)
    model = base + change * normal(1, 2000, 77)
    found = np.empty(2000, np.float32)
    _divergences(model.numpy().reshape(-1), base.numpy().reshape(-1), np.empty((3, 77)), found)
    expected = divergence(model, base).reshape(-1).numpy()
    assert (found != expected).sum() <= 2
    assert (np.abs(found - expected) <= np.spacing(expected)).all()


@pytest.mark.parametrize("changed", [0.1, 0.5, 1.0])  # with many entries unchanged, quartiles are zero
@pytest.mark.parametrize("memory", [0, 1 << 28])
def test_arcee_fusion_of_a_tensor_of_several_blocks_is_the_reference_bit_for_bit(changed, memory):
    base = (0.02 * normal(0, 900, 700)).bfloat16()
    mask = normal(2, 900, 700).abs() < {0.1: 0.1257, 0.5: 0.6745, 1.0: 99}[changed]
    model = (base + 0.001 * normal(1, 900, 700) * mask).bfloat16()
    with merge_job("arcee_fusion", [model], base, {}, torch.bfloat16) as job:
        merged = run(job, memory)[0]
    assert merged == raw(reference("arcee_fusion", [model], base, {}, torch.bfloat16))
    taken = torch.frombuffer(bytearray(merged), dtype=torch.bfloat16).reshape(900, 700) != base
    share = float((model != base).double().mean())
    assert (
        float(taken.double().mean()) == share if changed == 0.1 else 0.01 < float(taken.double().mean()) < 0.5 * share
    )


@pytest.mark.parametrize("kind", ["shifted", "equal", "one row", "one column", "huge"])
def test_arcee_fusion_of_rows_without_divergence_or_with_ties_at_the_threshold(kind):
    base = normal(0, 12, 40)
    base = {"one row": base.reshape(1, -1), "one column": base.reshape(-1, 1), "huge": 1000 * base}.get(kind, base)
    grid = (4 * normal(1, *base.shape)).round() / 64
    model = base + (0.5 if kind == "shifted" else 0.0 if kind == "equal" else grid)
    stack, base = [model.bfloat16()], base.bfloat16()
    with merge_job("arcee_fusion", stack, base, {}) as job:
        assert run(job)[0] == raw(reference("arcee_fusion", stack, base, {}, torch.float32))


@pytest.mark.parametrize("size", [0.001, 1.0])  # products of task vectors for the series of tanh, and beyond it
@pytest.mark.parametrize("memory", [0, 1 << 28])
def test_pcb_of_a_tensor_of_several_blocks_is_the_reference_but_for_few_entries(size, memory):
    # A score that rounds to the next fp32 number moves its share by as much; at the cut an entry may count or not.
    base, stack = normal(0, 800, 500), list(size * normal(1, 3, 800, 500) + normal(0, 800, 500))
    given_settings = {"weight": (0.5, 1.0, 0.75), "pcb_ratio": 0.2}
    with merge_job("pcb", stack, base, given_settings) as job:
        merged = torch.frombuffer(bytearray(run(job, memory)[0]), dtype=torch.float32).reshape(800, 500)
    expected = reference("pcb", stack, base, given_settings, torch.float32)
    assert (merged != expected).sum() <= 4
    assert (merged != base).double().mean() > 0.2


@pytest.mark.parametrize("name", ["arcee_fusion", "consensus", "pcb", "ram", "ramplus_tl"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_and_allowed_ones_end_the_merge_too(name, bad):
    base, model = normal(0, 30, 11), normal(1, 30, 11)
    model[7, 5] = bad
    with merge_job(name, [model], base, {}) as job:
        with pytest.raises(WeightopsError, match="NaN or Inf"):
            run(job)
        assert len(run(job, allow_nonfinite=True)[0]) == 4 * 30 * 11
