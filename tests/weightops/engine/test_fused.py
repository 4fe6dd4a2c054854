"""Every merge method through the engine is its own torch function, bit for bit, however the tensor is cut or kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import count, normal, required, seeds
from merge_jobs import DTYPES, SHAPES, merge_job, raw, reference, run, settings_of, stack_of

from weightops.engine import blocks, fused
from weightops.engine.fused import FUSED, forms
from weightops.errors import WeightopsError
from weightops.ops import find, methods

FUSED_METHODS = sorted(FUSED)
GRAM = [m.name for m in methods() if m.coefficients is not None]
ELEMENTWISE = [m.name for m in methods() if m.reads == "elementwise" and m.name not in FUSED]
WHOLE = [m.name for m in methods() if m.name not in {*FUSED_METHODS, *GRAM, *ELEMENTWISE}]
RANDOM = [m.name for m in methods() if "draw" in m.fills]
KINDS = ["normal", "ties", "near"]


@st.composite
def cases(draw, name):
    """A merge: models, base, settings and the output's dtype."""
    method = find(name)
    low, high = method.models
    n = draw(st.integers(low, min(high or 4, 4)))
    with_base = method.needs_base or ("base" in method.fills and draw(st.booleans()))
    shape, kind = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(KINDS))
    stored_as = [draw(st.sampled_from(DTYPES)) for _ in range(n + with_base)]
    stack = stack_of(draw(seeds), n + with_base, shape, kind, stored_as)
    base = stack.pop() if with_base else None
    return stack, base, draw(settings_of(method, n)), draw(st.sampled_from(DTYPES))


def outcome(compute):
    """Bytes, or what the method says it cannot do."""
    try:
        return compute()
    except WeightopsError as error:
        return str(error)


def test_these_tests_reach_every_method():
    assert {*FUSED_METHODS, *GRAM, *ELEMENTWISE, *WHOLE} == {m.name for m in methods()}
    assert all([FUSED_METHODS, GRAM, ELEMENTWISE, WHOLE, RANDOM])


SIGNS = """
from weightops.engine.fused.forms import fused

@fused("nearswap")
def nearswap(blocks, *, t):
    yield 0, None
"""


def test_a_fused_form_is_one_file_in_its_folder(tmp_path, monkeypatch):
    (tmp_path / "signs.py").write_text(SIGNS)
    monkeypatch.setattr(fused, "__path__", [*fused.__path__, str(tmp_path)])
    package = {"__name__": fused.__name__, "__package__": fused.__name__, "__path__": fused.__path__}
    try:
        exec(Path(fused.__file__).read_text(), package)  # as the package is imported
        assert FUSED["nearswap"].function.__module__ == "weightops.engine.fused.signs"
    finally:
        FUSED.pop("nearswap", None)
        sys.modules.pop("weightops.engine.fused.signs", None)


def test_a_fused_form_takes_what_its_reference_takes():
    with pytest.raises(
        TypeError, match="the fused form of ties takes blocks, weight, density, normalize, rescale, lambda_"
    ):
        forms.fused("ties")(lambda blocks, *, weight=1.0: iter(()))
    with pytest.raises(WeightopsError, match="unknown merge method 'tise'"):
        forms.fused("tise")


@pytest.mark.parametrize("name", [*FUSED_METHODS, *ELEMENTWISE, *WHOLE])
@pytest.mark.parametrize("block", [64, 1 << 18])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_engine_gives_what_the_function_gives_bit_for_bit(name, block, data):
    stack, base, given_settings, dtype = data.draw(cases(name))
    expected = outcome(lambda: raw(reference(name, stack, base, given_settings, dtype)))
    with pytest.MonkeyPatch.context() as patch, merge_job(name, stack, base, given_settings, dtype) as job:
        patch.setattr(blocks, "BLOCK", block)
        assert outcome(lambda: run(job)[0]) == expected


@pytest.mark.parametrize("name", GRAM)
@pytest.mark.parametrize("block", [64, 1 << 18])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_methods_of_inner_products_are_the_function_within_a_rounding(name, block, data):
    # The inner products are summed in another order, in fp64: a coefficient may fall on the next fp32 number.
    stack, base, given_settings, _ = data.draw(cases(name))
    expected = outcome(lambda: reference(name, stack, base, given_settings, torch.float32))
    with pytest.MonkeyPatch.context() as patch, merge_job(name, stack, base, given_settings) as job:
        patch.setattr(blocks, "BLOCK", block)
        fused_result = outcome(lambda: torch.frombuffer(bytearray(run(job)[0]), dtype=torch.float32).reshape(job.shape))
    if isinstance(expected, str) or isinstance(fused_result, str):
        assert fused_result == expected
    else:
        largest = max(float(t.float().abs().max()) for t in [*stack, *([] if base is None else [base])])
        torch.testing.assert_close(fused_result, expected, rtol=5e-7, atol=5e-7 * largest)


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bytes_whether_the_inputs_are_kept_or_read_again(name, dtype):
    n = count(find(name))
    stack = stack_of(1, n + 1, (60, 11), "ties", [torch.bfloat16] * (n + 1))
    base = stack.pop() if find(name).needs_base else None
    given_settings = {**required(find(name)), **({"density": 0.4} if _takes(name, "density") else {})}
    with pytest.MonkeyPatch.context() as patch, merge_job(name, stack, base, given_settings, dtype) as job:
        patch.setattr(blocks, "BLOCK", 128)
        assert run(job, memory=0) == run(job, memory=1 << 28)


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_gives_the_same_result_and_another_seed_another(name):
    base, stack = normal(0, 30, 20), list(normal(1, 2, 30, 20))

    def merged(seed):
        with merge_job(name, stack, base, {"density": 0.5}, seed=seed) as job:
            return run(job)[0]

    assert merged(3) == merged(3) == raw(reference(name, stack, base, {"density": 0.5}, torch.float32, seed=3))
    assert merged(3) != merged(4)


@pytest.mark.parametrize("name", RANDOM)
def test_the_stated_share_of_a_task_vector_is_kept_and_its_expectation_too(name):
    stack = [torch.ones(300, 400)]
    given_settings = {"density": 0.4, "rescale": "probability"} | ({"epsilon": 0.0} if "della" in name else {})
    with merge_job(name, stack, torch.zeros(300, 400), given_settings) as job:
        merged = torch.frombuffer(bytearray(run(job)[0]), dtype=torch.float32)
    n, p = merged.numel(), 0.4
    assert abs(int((merged != 0).sum()) - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    if name in ("dare_linear", "della_linear"):
        assert abs(float(merged.mean()) - 1) < 5 * ((1 - p) / p / n) ** 0.5


@pytest.mark.parametrize("name", FUSED_METHODS)
def test_rows_longer_than_a_block_and_blocks_that_end_inside_a_row(name):
    base, stack = normal(0, 3, 301), list(normal(1, 3, 3, 301))
    given_settings = {"density": 0.5} if _takes(name, "density") else {}
    expected = raw(reference(name, stack, base, given_settings, torch.bfloat16))
    with pytest.MonkeyPatch.context() as patch, merge_job(name, stack, base, given_settings, torch.bfloat16) as job:
        for block in (7, 100, 300, 302, 904):
            patch.setattr(blocks, "BLOCK", block)
            assert run(job, memory=0)[0] == expected


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("rescale", ["probability", "l1", "none"])
def test_each_way_to_rescale_gives_the_reference_bit_for_bit_kept_or_read_again(name, rescale):
    base, stack = normal(0, 40, 30), list(normal(1, 3, 40, 30))
    given_settings = {"density": 0.5, "rescale": rescale}
    expected = raw(reference(name, stack, base, given_settings, torch.float32))
    with pytest.MonkeyPatch.context() as patch, merge_job(name, stack, base, given_settings) as job:
        patch.setattr(blocks, "BLOCK", 128)
        assert run(job, memory=0)[0] == run(job)[0] == expected


@pytest.mark.parametrize("name", ["ties", "breadcrumbs_ties"])
def test_of_equal_magnitudes_the_first_are_kept_whatever_the_blocks(name):
    # 1000 entries of magnitude 1: density 0.5 keeps the first 500 of the flat order (the next after gamma's largest).
    delta = torch.ones(10, 100) * torch.tensor([1.0, -1.0]).repeat(50)
    given_settings = {"density": 0.5} | ({"gamma": 0.1} if name != "ties" else {})
    first = 100 if name != "ties" else 0
    with pytest.MonkeyPatch.context() as patch, merge_job(name, [delta], torch.zeros(10, 100), given_settings) as job:
        for block in (1, 33, 1000):
            patch.setattr(blocks, "BLOCK", block)
            merged = torch.frombuffer(bytearray(run(job)[0]), dtype=torch.float32)
            assert merged.nonzero().flatten().tolist() == list(range(first, first + 500))


def _takes(name, parameter):
    return any(p.name == parameter for p in find(name).parameters)
