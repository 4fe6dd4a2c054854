import torch
from hypothesis import given, settings
from merge_cases import normal, seeds

from weightops.ops.ram import ram, ramplus_tl

#         own  shared shared  below epsilon
DELTAS = [[4.0, 2.0, 0.0, 0.5], [0.0, 4.0, 3.0, 0.0], [0.0, 0.0, 9.0, 0.0]]


def test_ram_by_hand():
    assert ram(torch.tensor(DELTAS), epsilon=0.5).tolist() == [4.0, 3.0, 6.0, 0.0]
    assert ram(torch.tensor(DELTAS)).tolist() == [4.0, 3.0, 6.0, 0.5]


def test_ramplus_by_hand():
    # The first model shares one entry and owns two (0 and 3): factor 1 + 0.4 * 1/2. The others own none.
    merged = ramplus_tl(torch.tensor(DELTAS), r=0.4, alpha=1.0)
    torch.testing.assert_close(merged, torch.tensor([4.8, 3.0, 6.0, 0.6]))
    # alpha caps the ratio at 1/4: 1.1.
    torch.testing.assert_close(ramplus_tl(torch.tensor(DELTAS), r=0.4, alpha=0.25), torch.tensor([4.4, 3.0, 6.0, 0.55]))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_ramplus_without_strength_is_ram(seed):
    deltas = normal(seed, 3, 4, 5)
    torch.testing.assert_close(ramplus_tl(deltas, r=0.0, epsilon=0.5), ram(deltas, epsilon=0.5))
