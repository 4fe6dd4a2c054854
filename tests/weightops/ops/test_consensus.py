import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.consensus import consensus, tall_masks


def test_consensus_by_hand():
    # Sums 3, 3, 0. Entry 0: |1| > |3-1| * 0.4 yes, |2| > 1 * 0.4 yes, |0| > 3 * 0.4 no: two.
    # Entry 1: 3 > 0 yes, no, no: one. Entry 2: |1| > |-1| * 0.4 yes, likewise the second; no: two, but the sum is 0.
    deltas = torch.tensor([[1.0, 3.0, 1.0], [2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    masks = [[True, True, True], [True, False, True], [False, False, False]]
    assert tall_masks(deltas, 0.4).tolist() == masks
    assert consensus(deltas).tolist() == [3.0, 0.0, 0.0]
    assert consensus(deltas, k=1, lambda_=0.5).tolist() == [1.5, 1.5, 0.0]
    # With factor 1, the first task's 1 is no longer nearer: |1| > |3-1| fails, so entry 0 has one user.
    assert consensus(deltas, tall_lambda=[1.0, 0.4, 0.4]).tolist() == [0.0, 0.0, 0.0]


@given(seed=seeds, k=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_k_0_is_task_arithmetic_more_than_all_is_nothing_and_each_step_only_drops(seed, k):
    deltas = normal(seed, 3, 20)
    assert torch.equal(consensus(deltas, k=0), deltas.sum(0))
    assert not consensus(deltas, k=4).any()
    kept, fewer = consensus(deltas, k=k) != 0, consensus(deltas, k=k + 1) != 0
    assert not (fewer & ~kept).any()
