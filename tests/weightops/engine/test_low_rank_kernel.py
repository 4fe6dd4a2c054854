"""Any stretch of a low-rank product, bit for bit the same however it is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.engine.low_rank_kernel import low_rank


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)), st.booleans(), st.integers(0, 9), st.data())
def test_any_stretch_of_a_low_rank_update_equals_the_whole_product(shape, transposed, seed, data):
    rows, rank, columns = shape
    draw = np.random.default_rng(seed)
    left, right = (
        draw.normal(size=(rows, rank)).astype(np.float32),
        draw.normal(size=(rank, columns)).astype(np.float32),
    )
    whole = np.empty(rows * columns, np.float32)
    low_rank(left, right, 0.3, transposed, 0, whole)
    product = 0.3 * (left.astype(np.float64) @ right)
    expected = (product.T if transposed else product).reshape(-1)
    assert np.abs(whole - expected).max() <= 1e-6 * (1 + np.abs(left).max() * np.abs(right).max() * rank)
    lo = data.draw(st.integers(0, len(whole)))
    part = np.empty(data.draw(st.integers(0, len(whole) - lo)), np.float32)
    low_rank(left, right, 0.3, transposed, lo, part)
    assert np.array_equal(part, whole[lo : lo + len(part)])
