import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.pcb import pcb


def test_pcb_by_hand():
    # Magnitudes in [0, 1]: 1 0.5 0 0 and 0 1 0.5 0 (by 2). Sums 2 3 1 0; products 4 3 0 0 and 0 6 1 0.
    # Scores exp(2 a^2) tanh(product): e^2 tanh 4, e^0.5 tanh 3, 0, 0 and 0, e^2 tanh 6, e^0.5 tanh 1, 0.
    # Half of four: the cut is rank 2 from below, so the second highest, which becomes 0: only the best of each stays.
    deltas = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]])
    torch.testing.assert_close(pcb(deltas, pcb_ratio=0.5), torch.tensor([2.0, 2.0, 0.0, 0.0]))
    # All of them: scores from 0 to the best, so at entry 1 both count, weighted by their shares.
    share = math.exp(0.5) * math.tanh(3) / (math.exp(2) * math.tanh(4))
    expected = torch.tensor([2.0, (share * 1 + 1 * 2) / (share + 1), 1.0, 0.0])
    torch.testing.assert_close(pcb(deltas, pcb_ratio=1.0), expected)


@given(seed=seeds, ratio=st.floats(0.05, 0.9))
@settings(max_examples=30, deadline=None)
def test_one_model_keeps_its_best_entries_as_they_are(seed, ratio):
    delta = normal(seed, 1, 60)
    merged = pcb(delta, pcb_ratio=ratio)
    kept = merged != 0
    torch.testing.assert_close(merged[kept], delta[0][kept])
    above_the_cut = 60 - int(60 * (1 - ratio)) - 1
    assert int(kept.sum()) == above_the_cut
    if above_the_cut:
        assert delta[0][kept].abs().min() >= delta[0][~kept].abs().max()


def test_outliers_are_clipped_to_the_next_magnitude():
    # Of 20,000 entries two at each end: 1, 2, ... clip to 19,998.
    delta = torch.arange(1.0, 20_001.0, dtype=torch.float64).unsqueeze(0)
    assert float(pcb(delta).max()) == 19_998.0


def test_weights_scale_what_each_model_brings():
    deltas = normal(0, 2, 40)
    torch.testing.assert_close(pcb(deltas, weight=[2.0, 2.0]), 2 * pcb(deltas))
    assert not torch.allclose(pcb(deltas, weight=[2.0, 1.0]), pcb(deltas))
