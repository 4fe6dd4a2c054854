import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.dare import dare_linear, dare_ties
from weightops.ops.draw import Draw


class Fixed(Draw):
    """A draw with known numbers."""

    def uniform(self, model, count, start=0):
        return torch.tensor([[0.1, 0.6, 0.3, 0.9], [0.4, 0.2, 0.7, 0.8]])[model, :count].numpy()


def test_dare_by_hand():
    # Density 1/2 keeps draws below 0.5: of the first model entries 0 and 2, of the second 0 and 1; each doubles.
    deltas = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-3.0, 5.0, 6.0, 7.0]])
    draw = Fixed(seed=0, name="w")
    assert dare_linear(deltas, density=0.5, draw=draw).tolist() == [-4.0, 10.0, 6.0, 0.0]
    assert dare_linear(deltas, density=0.5, draw=draw, rescale="none").tolist() == [-2.0, 5.0, 3.0, 0.0]
    # By sign: at entry 0 the sum 2 - 6 elects minus.
    assert dare_ties(deltas, density=0.5, draw=draw).tolist() == [-6.0, 10.0, 6.0, 0.0]
    # Density for each model: all of the first, and of the second those below 0.25, times 4.
    assert dare_linear(deltas, density=[1.0, 0.25], draw=draw).tolist() == [1.0, 22.0, 3.0, 4.0]


@given(seed=seeds, density=st.floats(0.1, 0.9))
@settings(max_examples=10, deadline=None)
def test_the_average_over_many_seeds_is_task_arithmetic(seed, density):
    deltas = normal(seed, 2, 6, dtype=torch.float64)
    draws = 2000
    mean = sum(dare_linear(deltas, density=density, draw=Draw(seed=s, name=str(seed))) for s in range(draws)) / draws
    deviation = (deltas.square().sum(0) * (1 - density) / density / draws).sqrt()
    assert bool(((mean - deltas.sum(0)).abs() < 6 * deviation).all())


def test_a_density_of_0_drops_everything_and_more_than_1_nothing():
    deltas = normal(0, 2, 30)
    for method in (dare_linear, dare_ties):
        assert torch.equal(method(deltas, density=0.0, draw=Draw(0, "w")), torch.zeros(30))
        assert torch.equal(method(deltas, density=1.5, draw=Draw(0, "w")), method(deltas, draw=Draw(0, "w")))
