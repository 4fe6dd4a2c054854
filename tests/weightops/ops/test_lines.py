import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.anatomy.place import Place
from weightops.ops.lines import lines, lines_scale
from weightops.ops.task_arithmetic import task_arithmetic


def test_scale_by_hand():
    # Four layers from 0.2 in steps of 0.9 / 3.
    scales = [lines_scale(Place("w", layer, 4), 0.2, 0.9) for layer in range(4)]
    torch.testing.assert_close(scales, [0.2, 0.5, 0.8, 1.1])
    assert lines_scale(Place("embed"), 0.2, 0.9) == 0.2
    assert lines_scale(Place("w", 0, 1), 0.2, 0.9) == 0.2


def test_lines_by_hand():
    # The middle of three layers: 0.5 + 0.5 / 2 = 0.75 of the sum.
    assert lines(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), place=Place("w", 1, 3)).tolist() == [3.0, 3.0]


@given(seed=seeds, layer=st.integers(0, 7), alpha=st.sampled_from([0.25, 1.0, 2.0]))
@settings(max_examples=20, deadline=None)
def test_slope_0_is_task_arithmetic(seed, layer, alpha):
    deltas = normal(seed, 3, 10)
    merged = lines(deltas, place=Place("w", layer, 8), weight=[1.0, 0.5, 0.25], alpha=alpha, beta=0.0)
    assert torch.equal(merged, task_arithmetic(deltas, weight=[1.0, 0.5, 0.25]) * alpha)
