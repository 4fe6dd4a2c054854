"""Rows that stay together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.parts import duplicates
from weightops.recipes.parts.duplicates import alike_links, units
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


@given(st.integers(0, 2**20), st.floats(0.5, 0.999))
def test_alike_links_join_what_chains_of_alike_pairs_join_whatever_the_block(seed, threshold):
    vectors = np.random.default_rng(seed).normal(size=(30, 3)).astype(np.float32)
    vectors[20:] = vectors[:10]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"row {row}" for row in range(30)]
    cosines = vectors @ vectors.T
    pairs = [(one, other) for other in range(30) for one in range(other) if cosines[one, other] >= threshold]
    links = alike_links(vectors, threshold)
    assert len(links) < 30
    assert units(names, links) == units(names, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", 7)
        assert units(names, alike_links(vectors, threshold)) == units(names, pairs)
