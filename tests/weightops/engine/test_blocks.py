"""Blocks: the inputs of a merge, widened, the same ones in every pass and however much memory there is."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal
from merge_jobs import DTYPES, merge_job, stack_of

from weightops.engine import blocks
from weightops.engine.blocks import Blocks, GridDigest, memory_needed
from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError


class opened:  # noqa: N801
    """The blocks of a job, its file open."""

    def __init__(self, job, memory=1 << 28, **options):
        self._path = job.merge.inputs[0].stored.file
        self._descriptor = os.open(self._path, os.O_RDONLY)
        self.blocks = Blocks(job, {self._path: self._descriptor}, memory, **{"deltas": False, **options})

    def __enter__(self):
        return self.blocks

    def __exit__(self, *_):
        os.close(self._descriptor)


def gathered(passed):
    """Stack and base of one pass, and where the blocks began."""
    parts = [(b.begin, b.stack.copy(), None if b.base is None else b.base.copy()) for b in passed]
    base = None if parts[0][2] is None else np.concatenate([p[2] for p in parts])
    return np.concatenate([p[1] for p in parts], 1), base, [p[0] for p in parts]


@pytest.mark.parametrize("memory", [0, 1 << 28])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_every_pass_gives_the_inputs_widened_to_fp32(memory, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    stack = stack_of(0, 3, (30, 11), "normal", [dtype, torch.float32, torch.bfloat16])
    base = stack.pop()
    with merge_job("linear", stack, base, {}) as job, opened(job, memory) as passes:
        for _ in range(3):
            found, of_base, begins = gathered(passes)
            assert begins == [0, 100, 200, 300]
            for row, tensor in zip([*found, of_base], [*stack, base], strict=True):
                assert np.array_equal(row, tensor.float().numpy().reshape(-1))


@pytest.mark.parametrize("memory", [0, 1 << 28])
def test_task_vectors_are_the_models_less_the_base_in_fp32(memory, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 64)
    stack = stack_of(0, 3, (200,), "near", [torch.bfloat16] * 3)
    base = stack.pop()
    with merge_job("ties", stack, base, {}) as job, opened(job, memory, deltas=True) as passes:
        for _ in range(2):  # twice: the base must not be taken off again
            found, of_base, _ = gathered(passes)
            assert np.array_equal(found, (torch.stack(stack).float() - base.float()).numpy())
            assert np.array_equal(of_base, base.float().numpy())


@given(rows=st.integers(1, 9), width=st.integers(1, 40), block=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_blocks_of_rows_never_cut_a_row_and_cover_everything_once(rows, width, block):
    with pytest.MonkeyPatch.context() as patch, merge_job("linear", [normal(0, rows, width)], None, {}) as job:
        patch.setattr(blocks, "BLOCK", block)
        for by_row in (True, False):
            with opened(job, 0, rows=by_row) as passes:
                spans = [(b.begin, b.begin + b.length) for b in passes]
            assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == rows * width
            assert all(end - begin <= max(block, width if by_row else 1) for begin, end in spans)
            assert not by_row or all(begin % width == end % width == 0 for begin, end in spans)


@pytest.mark.parametrize("memory", [0, 1 << 28])
@pytest.mark.parametrize("dtype", DTYPES)
def test_digests_of_inputs_are_those_that_verify_computes(memory, dtype):
    # On the true grid: three blocks of 2 ** 18 elements, the last one shorter.
    stack = [normal(i, 3, 200_000).to(dtype) for i in range(2)]
    with merge_job("linear", stack, normal(2, 3, 200_000), {}) as job, opened(job, memory, rows=True) as passes:
        list(passes)
        list(passes)
        assert passes.digests == {i.stored: tensor_digest(i.stored) for i in job.merge.all_inputs}


def test_the_digest_of_a_model_that_is_named_twice_is_its_own():
    with merge_job("linear", [normal(0, 40)], None, {}) as job:
        twice = replace(job, merge=replace(job.merge, inputs=job.merge.inputs * 2))
        with opened(twice) as passes:
            list(passes)
            ((stored, digest),) = passes.digests.items()
            assert digest == tensor_digest(stored)


@given(data=st.binary(max_size=900), cuts=st.lists(st.integers(0, 900), max_size=6), block=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_grid_digest_does_not_depend_on_the_pieces(data, cuts, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        digest = GridDigest("BF16")
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for begin, end in pairwise(edges):
            digest.update(data[begin:end])
        grid = [data[i : i + 2 * block] for i in range(0, len(data), 2 * block)]
        assert digest.hexdigest() == blake3(b"".join(blake3(piece).digest() for piece in grid)).hexdigest()


def test_a_tensor_without_elements_has_no_blocks():
    with merge_job("linear", [torch.empty(0, 4)], None, {}) as job, opened(job) as passes:
        assert list(passes) == []


def test_whole_gives_every_input_in_one_piece(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 13)
    stack, base = list(normal(0, 2, 50)), normal(1, 50)
    with merge_job("linear", stack, base, {}) as job, opened(job, 0) as passes:
        found, of_base = passes.whole()
        assert np.array_equal(found, torch.stack(stack).numpy())
        assert np.array_equal(of_base, base.numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_input_that_is_not_finite_is_named_unless_allowed(value, dtype):
    bad = normal(0, 300).to(dtype)
    bad[299] = value
    with merge_job("linear", [normal(1, 300), bad], None, {}) as job:
        with opened(job) as passes, pytest.raises(WeightopsError, match="001 holds NaN or Inf"):
            list(passes)
        with opened(job, allow_nonfinite=True) as passes:
            assert not np.isfinite(gathered(passes)[0][1, 299])


def test_the_memory_needed_is_what_a_pass_holds_when_nothing_is_kept():
    def peak(memory: int) -> int:
        tracemalloc.start()
        try:
            with opened(job, memory) as passes:
                for _ in range(2):
                    for _ in passes:
                        pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with merge_job("linear", list(normal(0, 3, 4, 300_000)), None, {}) as job:
        need = memory_needed(job.shape, 3)
        peak(0)  # what is compiled and imported on the way
        assert 0.5 * need < peak(0) < need + 50_000
        assert 4 * 3 * job.count < peak(1 << 28) < 4 * 3 * job.count + need
