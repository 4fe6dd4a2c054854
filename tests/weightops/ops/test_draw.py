import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.ops.draw import Draw, key

MASK = 2**64 - 1


def scalar(seed, name, model, index):
    """SplitMix64 by the book, in Python integers."""
    z = (key(seed, name, model) + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 40) * 2.0**-24


@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_a_draw_is_splitmix64_of_the_element(seed, model, start):
    drawn = Draw(seed=seed, name="a.b").at(start).uniform(model, 3)
    assert drawn.tolist() == [scalar(seed, "a.b", model, start + i) for i in range(3)]


def test_seed_name_and_model_each_change_the_draw():
    rows = [
        Draw(0, "w").uniform(0, 8),
        Draw(1, "w").uniform(0, 8),
        Draw(0, "v").uniform(0, 8),
        Draw(0, "w").uniform(1, 8),
    ]
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_numbers_are_uniform_and_unrelated_from_one_element_to_the_next():
    numbers = Draw(seed=3, name="w").uniform(0, 100_000).astype(np.float64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-square, 19 degrees of freedom: p about 1e-4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.015
