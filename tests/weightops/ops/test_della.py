import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.errors import WeightopsError
from weightops.ops.della import della, della_linear, row_probabilities
from weightops.ops.draw import Draw


class Fixed(Draw):
    """A draw of 0.45 throughout."""

    def uniform(self, model, count, start=0):
        return torch.full((count,), 0.45).numpy()


def test_row_probabilities_by_hand():
    # Each row by itself, from 0.25 (smallest) to 0.75 (largest) in even steps; of equals the first ranks higher.
    deltas = torch.tensor([[[5.0, -1.0, 3.0], [0.1, 0.1, -0.2]]])
    expected = torch.tensor([[[0.75, 0.25, 0.5], [0.5, 0.25, 0.75]]])
    torch.testing.assert_close(row_probabilities(deltas, 0.5, 0.25), expected)


def test_della_by_hand():
    # A draw of 0.45 keeps probabilities 0.75 and 0.5, each divided by itself.
    deltas = torch.tensor([[3.0, -1.0, 2.0], [-6.0, 1.0, 3.0]])
    draw = Fixed(seed=0, name="w")
    how = {"density": 0.5, "epsilon": 0.25, "draw": draw}
    expected = torch.tensor([4.0 - 8.0, 0.0, 4.0 + 6.0])
    torch.testing.assert_close(della_linear(deltas, rescale="probability", **how), expected)
    # By sign and averaged: minus wins at entry 0.
    torch.testing.assert_close(della(deltas, rescale="probability", **how), torch.tensor([-8.0, 0.0, 5.0]))
    # To the L1 norm: 3 + 2 of 6 are kept of the first, 6 + 3 of 10 of the second.
    expected = torch.tensor([3 * 6 / 5 - 6 * 10 / 9, 0.0, 2 * 6 / 5 + 3 * 10 / 9])
    torch.testing.assert_close(della_linear(deltas, **how), expected)
    torch.testing.assert_close(della_linear(deltas, rescale="none", **how), torch.tensor([-3.0, 0.0, 5.0]))


@given(seed=seeds, density=st.floats(0.3, 0.7))
@settings(max_examples=20, deadline=None)
def test_probabilities_average_to_the_density_and_follow_the_magnitude(seed, density):
    deltas = normal(seed, 2, 3, 7, dtype=torch.float64)
    probability = row_probabilities(deltas, density, [0.1, 0.2])
    torch.testing.assert_close(probability.mean(-1), torch.full((2, 3), density, dtype=torch.float64))
    by_magnitude = probability.gather(-1, deltas.abs().argsort(-1))
    assert bool((by_magnitude.diff(dim=-1) > 0).all())
    torch.testing.assert_close(
        by_magnitude[..., -1] - by_magnitude[..., 0], torch.tensor([[0.2] * 3, [0.4] * 3]).double()
    )


def test_the_average_over_many_seeds_is_task_arithmetic():
    deltas, draws = normal(1, 2, 3, 4, dtype=torch.float64), 3000
    how = {"density": 0.5, "rescale": "probability"}
    mean = sum(della_linear(deltas, draw=Draw(s, "w"), **how) for s in range(draws)) / draws
    probability = row_probabilities(deltas, 0.5, 0.15)
    deviation = (deltas.square() * (1 - probability) / probability / draws).sum(0).sqrt()
    assert bool(((mean - deltas.sum(0)).abs() < 5 * deviation).all())


def test_a_row_of_one_gets_the_density():
    assert row_probabilities(torch.ones(1, 3, 1), 0.5, 0.25).flatten().tolist() == [0.5] * 3


def test_epsilon_must_leave_a_probability():
    with pytest.raises(WeightopsError, match=r"take epsilon below 0\.1"):
        della(torch.ones(1, 4), density=0.9, draw=Draw(0, "w"))
