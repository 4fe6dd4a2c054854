"""Units shared out evenly, cut in order, and clusters of equal size."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.parts.balancing import cut, fewest_first, shared_out
from weightops.recipes.parts.clusters import clustered, equal_sizes
from weightops.recipes.parts.dispersion import Pool

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=30)


def units_of(sizes):
    ends = [*itertools.accumulate(sizes)]
    return [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def rows_in(chosen, sizes, parts):
    return [sum(size for size, part_of in zip(sizes, chosen, strict=True) if part_of == part) for part in range(parts)]


@given(SIZES, st.integers(1, 6), st.integers(0, 3))
def test_sharing_out_leaves_no_part_empty_and_sizes_apart_by_no_more_than_a_unit(sizes, parts, seed):
    parts = min(parts, len(sizes))
    chosen = shared_out(sizes, parts, seed)
    rows = rows_in(chosen, sizes, parts)
    assert min(rows) > 0
    assert max(rows) - min(rows) <= max(sizes)
    assert chosen == shared_out(sizes, parts, seed)


@given(SIZES, st.integers(1, 6))
def test_a_cut_keeps_the_order_and_leaves_no_part_empty(sizes, parts):
    parts = min(parts, len(sizes))
    chosen = cut(units_of(sizes), range(len(sizes)), parts)
    assert chosen == sorted(chosen)
    assert set(chosen) == set(range(parts))
    if set(sizes) == {1}:
        rows = rows_in(chosen, sizes, parts)
        assert max(rows) - min(rows) <= 1


@given(SIZES, st.integers(1, 5), st.integers(0, 2**20))
def test_balanced_clusters_are_never_empty_and_single_rows_even_them_out(sizes, count, seed):
    count = min(count, len(sizes))
    draw = np.random.default_rng(seed)
    points, weights = draw.normal(size=(len(sizes), 3)), np.array(sizes, np.float64)
    labels = equal_sizes(points, weights, points[:count])
    rows = rows_in(labels.tolist(), sizes, count)
    assert min(rows) > 0
    if set(sizes) == {1}:
        assert max(rows) - min(rows) <= 1


def test_balanced_clusters_of_few_points_are_as_near_to_their_centres_as_can_be():
    """Against every way to put 6 points into two clusters of 3."""
    points = np.random.default_rng(3).normal(size=(6, 2))

    def cost(labels):
        return sum(((points[labels == each] - points[labels == each].mean(0)) ** 2).sum() for each in (0, 1))

    ways = [np.isin(np.arange(6), three).astype(int) for three in itertools.combinations(range(6), 3)]
    least = min(cost(equal_sizes(points, np.ones(6), points[[one, other]]))
                for one, other in itertools.combinations(range(6), 2))  # fmt: skip
    assert least == pytest.approx(min(map(cost, ways)))


def test_clusters_far_apart_are_found_and_the_largest_comes_first():
    centres = np.eye(4)[:3]
    labels = [0, 1, 2, 2, 2, 1, 2]
    vectors = (centres[labels] + 0.01 * np.random.default_rng(0).normal(size=(7, 4))).astype(np.float32)
    units = [(row,) for row in range(7)]
    pool = Pool([], [], units, 3, 0, vectors, None, print)
    assert clustered(pool, 3) == [2, 1, 0, 0, 0, 1, 0]
    assert sorted(np.bincount(clustered(pool, 3, balanced=True))) == [2, 2, 3]


def test_whole_sources_go_where_the_fewest_rows_are():
    assert fewest_first([2, 9, 4, 3], 2, range(4)) == [1, 0, 1, 1]
