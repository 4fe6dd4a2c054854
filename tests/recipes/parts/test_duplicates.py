"""Rows that stay together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.parts import duplicates
from weightops.recipes.parts.duplicates import alike_pairs, units
from weightops.recipes.parts.row_fields import normalised

TEXTS = st.lists(st.sampled_from(["a", "A ", " a", "b", "B", "c", "ﬁ", "fi"]), max_size=12)


@given(TEXTS, st.data())
def test_every_row_is_in_one_unit_with_all_that_it_is_equal_or_linked_to(texts, data):
    rows = st.integers(0, max(len(texts) - 1, 0))
    pairs = data.draw(st.lists(st.tuples(rows, rows), max_size=4)) if texts else []
    made = units(texts, pairs)
    assert sorted(row for unit in made for row in unit) == list(range(len(texts)))
    of = {row: number for number, unit in enumerate(made) for row in unit}
    for one in range(len(texts)):
        for other in range(len(texts)):
            if normalised(texts[one]) == normalised(texts[other]) or (one, other) in pairs:
                assert of[one] == of[other]
    if not pairs:
        assert all(len({normalised(texts[row]) for row in unit}) == 1 for unit in made)
    assert made == sorted(made)


def test_alike_pairs_are_those_of_all_pairs_whatever_the_block(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    expected = {(one, other) for other in range(40) for one in range(other) if cosines[one, other] >= 0.8}
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert set(alike_pairs(vectors, 0.8)) == expected
