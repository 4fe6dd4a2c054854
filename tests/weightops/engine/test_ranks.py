"""The entries at some ranks of numbers that are read in blocks are those of the sorted numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.engine.fused import ranks
from weightops.engine.fused.ranks import ranked

SEVERAL = st.lists(st.lists(st.sampled_from([0, 1, 2, 255, 256, 257, 1 << 20, (1 << 31) - 1]), min_size=9, max_size=9))


@given(rows=SEVERAL.filter(bool), wanted=st.lists(st.integers(0, 8), max_size=3), few=st.sampled_from([0, 2, 5, 100]))
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_the_sorted_numbers_however_many_are_collected(rows, wanted, few):
    numbers = np.array(rows, np.uint32)
    passes = []

    def started():
        passes.append(1)
        return (numbers[:, :4], numbers[:, 4:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_DIGIT", 8)
        patch.setattr(ranks, "_FEW", few)
        found = ranked(started, 9, [wanted] * len(rows), bits=31)
    assert found == [[sorted(row)[rank] for rank in wanted] for row in rows]
    assert len(passes) <= 5


def test_the_bits_of_floats_have_their_order_and_the_sign_is_left_out():
    numbers = np.array([[-3.0, 0.5, 2.0, -0.0]], np.float32)
    found = ranked(lambda: [numbers.view(np.uint32)], 4, [[0, 1, 3]], bits=31)
    assert np.array(found, np.uint32).view(np.float32).tolist() == [[0.0, 0.5, 3.0]]


@pytest.mark.parametrize(("least", "expected"), [(1 << 52, 2), (1, 4)])
def test_zeros_take_no_further_pass_where_nothing_is_near_zero(monkeypatch, least, expected):
    # Of 16 numbers 12 are 0, which is more than are collected; that the median is one of them shows in the first digit.
    monkeypatch.setattr(ranks, "_FEW", 8)
    numbers = np.array([[0.0] * 12 + [1.0, 2.0, 3.0, 4.0]]).view(np.int64)
    passes = []
    found = ranked(lambda: passes.append(1) or [numbers], 16, [[8, 14]], least=least)
    assert np.array(found).view(np.float64).tolist() == [[0.0, 3.0]]
    assert len(passes) == expected
