import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.breadcrumbs import breadcrumbs, breadcrumbs_ties, keep_middle


def test_breadcrumbs_by_hand():
    # Eight entries by magnitude: 9 8 7 5 4 3 2 1. gamma 1/4 skips two (9 8), density 3/8 keeps the next three (7 5 4).
    first = [1.0, -9.0, 5.0, 2.0, -4.0, 8.0, -7.0, 3.0]
    deltas = torch.tensor([first, [-x for x in first]])
    kept = [0.0, 0.0, 5.0, 0.0, -4.0, 0.0, -7.0, 0.0]
    assert breadcrumbs(deltas[:1], density=0.375, gamma=0.25).tolist() == kept
    # Weights 2 and 1: 2 kept - kept. By sign: the heavier elects, and its two parts stay.
    assert breadcrumbs(deltas, density=0.375, gamma=0.25, weight=[2.0, 1.0]).tolist() == kept
    merged = breadcrumbs_ties(deltas, density=0.375, gamma=0.25, weight=[2.0, 1.0])
    assert merged.tolist() == [2 * x for x in kept]


def test_equal_magnitudes_at_both_ends_go_by_flat_order():
    # All alike: the first is the outlier, the next two stay.
    assert keep_middle(torch.ones(1, 4), 0.5, 0.25, rescale=False).tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_rescale_restores_the_l1_norm():
    # Of 4 3 2 1 keep 3 2: 10 / 5.
    deltas = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert breadcrumbs(deltas, density=0.5, gamma=0.25, rescale=True).tolist() == [0.0, 6.0, 4.0, 0.0]


@given(seed=seeds, density=st.floats(0, 0.99), gamma=st.floats(0, 0.5), size=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_density_is_met_whatever_gamma(seed, density, gamma, size):
    deltas = normal(seed, 1, size)
    kept = keep_middle(deltas, density, gamma, rescale=False)
    assert int((kept != 0).sum()) == int(density * size)
    skipped = int((deltas.abs() > kept.abs().max()).sum()) if kept.any() else 0
    assert skipped <= int(gamma * size)
