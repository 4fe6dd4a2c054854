"""A merge job: what the method gives, on the base, rounded once, with what was read and written on record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import count, normal, required, seeds
from merge_jobs import DTYPES, PLACE, merge_job, raw, reference, run, stack_of

from weightops.engine import blocks, merging
from weightops.engine.blocks import GridDigest, memory_needed
from weightops.engine.jobs import Input, LowRank, Term
from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError
from weightops.ops import Draw, find, methods, operator, registry

DELTAS = [m.name for m in methods() if m.takes == "deltas"]


def as_tensor(data, job, dtype):
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(job.shape)


@pytest.mark.parametrize("name", DELTAS)
def test_the_factor_of_lines_scales_what_is_added_to_the_base(name):
    n = count(find(name))
    stack, base = stack_of(0, n, (9, 8), "normal", [torch.bfloat16] * n), normal(1, 9, 8)
    given_settings = {**required(find(name))}
    with merge_job(name, stack, base, given_settings, scale=0.625) as job:
        expected = reference(name, stack, base, given_settings, torch.float32, scale=0.625)
        torch.testing.assert_close(as_tensor(run(job)[0], job, torch.float32), expected, rtol=1e-6, atol=1e-6)
        assert not torch.equal(expected, reference(name, stack, base, given_settings, torch.float32))


@pytest.mark.parametrize("name", DELTAS)
def test_models_equal_to_the_base_give_its_very_bits(name):
    base = stack_of(0, 1, (7, 9), "normal", [torch.bfloat16])[0]
    with merge_job(name, [base] * count(find(name)), base, required(find(name)), torch.bfloat16) as job:
        assert run(job)[0] == raw(base)


def test_a_new_thread_computes_the_bits_of_one_that_has_computed_before():
    """LAPACK in a new thread would use all processors, and give other last bits than on a machine that has one."""
    stack = stack_of(0, 2, (96, 64), "normal", [torch.bfloat16] * 2)
    with merge_job("tsv_m", stack, normal(1, 96, 64), {}) as job, ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, job).result()[0] == run(job)[0]


@given(seed=seeds, dtype=st.sampled_from(DTYPES))
@settings(max_examples=30, deadline=None)
def test_the_result_is_rounded_once(seed, dtype):
    # In float64, ties of two models in one sign: base + mean. Rounding twice would miss it by a step now and then.
    stack, base = [normal(seed + i, 40).abs() for i in (1, 2)], normal(seed, 40).abs() - 8
    with merge_job("ties", stack, base, {}, dtype) as job:
        merged = as_tensor(run(job)[0], job, dtype)
    with merge_job("ties", stack, base, {}) as job:
        assert torch.equal(as_tensor(run(job)[0], job, torch.float32).to(dtype), merged)
    true = base.double() + (torch.stack(stack).double() - base.double()).mean(0)
    step = torch.finfo(dtype).eps * true.abs()
    assert bool(((merged.double() - true).abs() <= 0.5 * step + 2e-6).all())


@pytest.mark.parametrize("name", ["ties", "karcher", "arcee_fusion", "ram"])
def test_the_record_holds_the_digests_of_inputs_and_output(name):
    n = count(find(name))
    base = normal(5, 30, 11) if find(name).takes == "deltas" or find(name).needs_base else None
    with pytest.MonkeyPatch.context() as patch, merge_job(name, list(normal(0, n, 30, 11)), base, {}) as job:
        patch.setattr(blocks, "BLOCK", 100)
        data, record = run(job, memory=0)
        patch.setattr("weightops.engine.tally.BLOCK", 100)
        assert record["in"] == [tensor_digest(source.stored) for source in job.merge.all_inputs]
        whole = GridDigest(job.dtype)
        whole.update(data)
        assert record["out"] == whole.hexdigest()


@given(seed=seeds, transposed=st.booleans(), block=st.sampled_from([5, 64, 1000]))
@settings(max_examples=30, deadline=None)
def test_a_low_rank_update_is_the_dense_matrix_added(seed, transposed, block):
    left, right, weight = normal(seed, 12, 3), normal(seed + 1, 3, 10), normal(seed + 2, 12, 10)
    weight = weight.T.contiguous() if transposed else weight
    with pytest.MonkeyPatch.context() as patch, merge_job("linear", [weight, left, right], None, {}) as job:
        patch.setattr(blocks, "BLOCK", block)
        stored, b, a = (source.stored for source in job.merge.inputs)
        update = LowRank("w", b, a, 0.5, tuple(weight.shape), transposed)
        changed = Input(stored, (Term(1.0, update),))
        adapted = replace(job, merge=replace(job.merge, method="passthrough", inputs=(changed,)))
        dense = 0.5 * (left.double() @ right.double())
        true = weight.double() + (dense.T if transposed else dense)
        torch.testing.assert_close(as_tensor(run(adapted)[0], adapted, torch.float32).double(), true, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_result_too_large_for_the_dtype_is_an_error_unless_allowed(dtype):
    large = torch.finfo(dtype).max
    stack, base = [torch.full((10,), float(large))], torch.zeros(10)
    with merge_job("task_arithmetic", stack, base, {"lambda": 1.5}, dtype) as job:
        with pytest.raises(WeightopsError, match="w: task_arithmetic gives NaN or Inf"):
            run(job)
        assert as_tensor(run(job, allow_nonfinite=True)[0], job, dtype).isinf().all()


def test_settings_become_arguments_and_the_engine_fills_in_draw_and_place():
    with merge_job("lines", list(normal(0, 1, 4)), normal(1, 4), {"lambda": 0.5, "alpha": 0.1}) as job:
        assert merging.keywords(job.merge) == {"lambda_": 0.5, "alpha": 0.1, "place": PLACE}
    with merge_job("dare_ties", list(normal(0, 1, 4)), normal(1, 4), {}, seed=7) as job:
        assert merging.keywords(job.merge) == {"draw": Draw(7, PLACE.name)}


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
def test_methods_that_stream_need_blocks_and_the_others_say_what_they_need(name):
    shape, n = (4096, 4096), count(find(name))
    with merge_job(name, list(normal(0, n, 2, 2)), None, {}) as job:
        need = merging.workspace(shape, job.merge)
    streams = name in merging.FUSED or find(name).coefficients or find(name).reads == "elementwise"
    assert need == memory_needed(shape, n) if streams else need >= 4 * 4096 * 4096 * n
    assert not streams or need < 16 << 20


def test_row_wise_variants_have_no_streaming_form():
    with merge_job("model_stock", list(normal(0, 2, 2, 2)), None, {"filter_wise": True}) as job:
        assert merging.workspace((512, 512), job.merge) > 4 * 512 * 512


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_fp64_models_merge_to_the_fp32_formula(dtype):
    stack, base = [normal(i, 50, dtype=torch.float64) for i in (1, 2)], normal(0, 50, dtype=torch.float64)
    with merge_job("ties", stack, base, {"density": 0.5}, dtype) as job:
        assert run(job)[0] == raw(reference("ties", stack, base, {"density": 0.5}, dtype))


def test_a_random_method_of_a_users_own_draws_by_element_whatever_the_blocks(monkeypatch):
    def noise(deltas: torch.Tensor, *, draw: Draw) -> torch.Tensor:
        """Numbers in [0, 1)."""
        return torch.from_numpy(draw.uniform(0, deltas[0].numel())).reshape(deltas.shape[1:])

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    operator(reads="elementwise", paper="none", name="noise")(noise)
    with merge_job("noise", [normal(0, 90)], torch.zeros(90), {}, seed=5) as job:
        for block in (7, 64, 1000):
            monkeypatch.setattr(blocks, "BLOCK", block)
            assert run(job)[0] == Draw(5, PLACE.name).uniform(0, 90).tobytes()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"density": -5}, r"density must be in \[0, 1\], not -5"),
        ({"normalize": 3}, "normalize must be true or false, not 3"),
        ({"weight": (1.0, 2.0)}, "weight has 2 values for 1 models"),
        ({"densty": 0.5}, "did you mean 'density'"),
    ],
)
def test_settings_that_reach_the_engine_directly_are_checked_too(settings, problem):
    stack, base = list(normal(0, 1, 4)), normal(1, 4)
    with merge_job("ties", stack, base, settings) as job, pytest.raises(WeightopsError, match=problem):
        run(job)


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
def test_only_what_gets_the_whole_tensor_computes_on_the_device(name):
    n = count(find(name))
    base = normal(1, 3, 4) if find(name).needs_base else None
    with merge_job(name, list(normal(0, n, 3, 4)), base, required(find(name))) as job:
        expected = run(job)
        away = replace(job, merge=replace(job.merge, device="meta"))  # where nothing has a value
        if merging.way(find(name), dict(job.merge.settings)) == "whole":
            with pytest.raises(
                WeightopsError, match=rf"w: {name} failed on the device 'meta' \(.*\); compute on the CPU"
            ):
                run(away)
        else:
            assert run(away) == expected
