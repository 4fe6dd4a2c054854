import math

import torch
from hypothesis import given, settings
from merge_cases import normal, seeds

from weightops.ops.karcher import karcher


def at(*degrees):
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=torch.float64)


def test_karcher_by_hand():
    # On a circle the mean of the angles: 0, 30 and 90 degrees give 40; the lengths 1, 2, 3 give 2.
    models = at(0, 30, 90) * torch.tensor([[1.0], [2.0], [3.0]])
    torch.testing.assert_close(karcher(models), 2 * at(40)[0], rtol=1e-9, atol=1e-9)


def test_karcher_of_opposite_models_is_the_first_direction():
    torch.testing.assert_close(karcher(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])), torch.tensor([2.0, 0.0]))


def test_karcher_of_all_but_opposite_models_does_not_choose_a_way_round():
    torch.testing.assert_close(karcher(torch.tensor([[3.0, 0.0], [-1.0, 1e-7]])), torch.tensor([2.0, 0.0]))


def test_karcher_leaves_out_what_has_no_direction():
    # The zero model does not turn the mean but shortens it: lengths 2 and 0.
    torch.testing.assert_close(karcher(torch.tensor([[2.0, 0.0], [0.0, 0.0]])), torch.tensor([1.0, 0.0]))
    assert karcher(torch.full((2, 2), 1e-9)).tolist() == [0.0, 0.0]


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_karcher_is_where_the_ways_to_all_models_cancel(seed):
    units = torch.nn.functional.normalize(normal(seed, 4, 20, dtype=torch.float64) + 0.5, dim=1)
    mean = karcher(units, max_iter=100, tol=1e-7)
    height = units @ mean
    ways = (height.acos() / height.acos().sin()).unsqueeze(1) * (units - height.unsqueeze(1) * mean)
    torch.testing.assert_close(ways.mean(0), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-6)
