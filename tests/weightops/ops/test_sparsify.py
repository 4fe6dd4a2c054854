import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.errors import WeightopsError
from weightops.ops.draw import Draw
from weightops.ops.sparsify import keep_largest, keep_random, kept_count, largest, per_model, same_l1

few_values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)  # few, so that many are equal


@given(few_values, st.integers(-1, 31))
def test_largest_marks_the_first_of_the_descending_order(values, wanted):
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    expected = [i in order[: max(wanted, 0)] for i in range(len(values))]
    assert largest(torch.tensor(values), wanted).tolist() == expected


@given(few_values, st.floats(0, 1, exclude_min=True))
def test_keep_largest_keeps_exactly_so_many(values, density):
    delta = torch.tensor([values]) + 10  # no zeros, to count by
    kept = keep_largest(delta, density)
    assert int((kept != 0).sum()) == max(1, int(density * len(values)))
    assert torch.equal(kept[kept != 0], delta[kept != 0])


def test_keep_largest_by_hand():
    # Magnitudes 3 1 / 3 2; half of four is two: both threes, in whatever place. Of [1 1 / 1 1] the first two.
    stack = torch.tensor([[[-3.0, 1.0], [3.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert keep_largest(stack, 0.5).tolist() == [[[-3.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]]
    # A density for each model: none of the first, one (a quarter) of the second.
    assert keep_largest(stack, [0.0, 0.25]).tolist() == [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]


def test_kept_count_rounds_down_in_double_precision():
    assert kept_count(0.29, 100) == 28  # 0.29 * 100 is 28.999999999999996
    assert kept_count(2.0, 3) == 3
    assert kept_count(0.0, 3) == 0


def test_per_model_refuses_another_number_of_values():
    with pytest.raises(WeightopsError, match="2 values for 3 models"):
        per_model([1.0, 2.0], torch.zeros(3, 4))


@given(seed=seeds, density=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_random_keeping_has_the_rate_and_the_expectation_asked_for(seed, density):
    ones = torch.ones(1, 40_000, dtype=torch.float64)
    kept = keep_random(ones, per_model(density, ones), Draw(seed=seed, name="w"), rescale="probability")
    deviation = (density * (1 - density) / ones.numel()) ** 0.5  # of the kept share, binomial
    assert abs(float((kept != 0).double().mean()) - density) < 6 * deviation
    assert abs(float(kept.mean()) - 1) < 6 * deviation / density


def test_same_l1_restores_the_norm_of_each_model():
    whole = normal(0, 2, 50)
    sparse = keep_largest(whole, [0.1, 0.5])
    restored = same_l1(sparse, whole)
    torch.testing.assert_close(restored.abs().sum(1), whole.abs().sum(1))
    assert torch.equal(restored == 0, sparse == 0)
