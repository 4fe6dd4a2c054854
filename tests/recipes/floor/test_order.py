import random

from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.floor.order import FILLER, Order, order


@given(st.lists(st.integers(1, 99), max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_in_an_order_of_seed_and_epoch_alone(lengths, batch, seed, epoch):
    made = order(lengths, batch, seed, epoch)
    assert sorted(made) == list(range(len(lengths)))
    assert made == order(lengths, batch, seed, epoch)


def test_rows_of_like_length_go_together_and_seed_and_epoch_change_the_order():
    lengths = [random.Random(row).randrange(10, 100) for row in range(515)]
    made = order(lengths, 8, 0, 0)
    batches = [made[start : start + 8] for start in range(0, len(made), 8)]
    assert sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) < 1.15 * sum(lengths)
    assert made != order(lengths, 8, 1, 0)
    assert made != order(lengths, 8, 0, 1)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))
def test_fillers_come_last_and_only_as_many_as_the_processes_need(rows, share, processes):
    sampler = Order([1] * rows, share * processes, 0, share * processes)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == -(-rows // (share * processes)) * share * processes
    assert sorted(drawn[:rows]) == list(range(rows))
    assert set(drawn[rows:]) <= {FILLER}
