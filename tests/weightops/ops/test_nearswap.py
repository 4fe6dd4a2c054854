import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.nearswap import nearswap


def test_nearswap_by_hand():
    # Within t the model, beyond it t of the way.
    assert nearswap(torch.tensor([[0.25, -0.5, 2.0, -8.0]]), t=0.5).tolist() == [0.25, -0.5, 0.5, -0.5]
    assert nearswap(torch.tensor([[0.25, -8.0]]), t=-1.0).tolist() == [0.0, 0.0]


@given(seed=seeds, t=st.floats(1e-12, 10))
@settings(max_examples=30, deadline=None)
def test_nearswap_is_the_published_weight_times_the_change(seed, t):
    delta = normal(seed, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(nearswap(delta, t=t), ((t / delta.abs()).clamp(0, 1) * delta)[0])
