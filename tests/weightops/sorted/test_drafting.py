"""The draft that is expected to give the most tokens for the layers it loads."""

from __future__ import annotations

import pytest
import torch

from weightops.sorted.drafting import DynamicDraft


def test_the_formula_by_hand():
    """Depth 10, head 2, exit 4 right half of the time: 1.5 tokens for 6 + 12 layers, or 1.75 for 12 + 12."""
    policy = DynamicDraft([4], depth=10, head=2.0, draft_head=2.0, longest=2)
    policy.compare({4: 0.5})
    assert policy._tokens_per_layer((4, 1)) == pytest.approx(1.5 / 18)
    assert policy._tokens_per_layer((4, 2)) == pytest.approx(1.75 / 24)
    assert policy.choose() == (4, 0)  # a plain step gives 1 / 12, as much as the best draft


def test_drafts_with_a_smaller_head_cost_less():
    """As above, with a head of half a layer for drafts: 1.5 tokens for 4.5 + 12 layers, or 1.75 for 9 + 12."""
    policy = DynamicDraft([4], depth=10, head=2.0, draft_head=0.5, longest=2)
    policy.compare({4: 0.5})
    assert policy._tokens_per_layer((4, 1)) == pytest.approx(1.5 / 16.5)
    assert policy._tokens_per_layer((4, 2)) == pytest.approx(1.75 / 21)
    assert policy.choose() == (4, 1)


def test_an_exit_that_is_often_right_drafts_far_and_one_that_is_not_drafts_nothing():
    policy = DynamicDraft([2, 5], depth=10, head=1.0, draft_head=1.0, longest=6)
    policy.compare({2: 0.95, 5: 0.96})
    assert policy.choose() == (2, 6)
    for _ in range(20):
        policy.observe(2, 6, [0])
        policy.observe(5, 6, [0])
    assert policy.choose()[1] == 0


def test_a_draft_counts_up_to_its_first_rejected_token():
    policy = DynamicDraft([2], depth=10, head=1.0, draft_head=1.0)
    policy.compare({2: 1.0})
    policy.observe(2, 4, [1, 4])  # 1 of the 2 tried in one row, 4 of 4 in the other
    assert policy.rates[2] == pytest.approx(0.8 + 0.2 * 5 / 6)


def test_an_unsure_exit_ends_the_draft():
    policy = DynamicDraft([2], depth=10, head=1.0, draft_head=1.0)
    assert policy.stops(torch.zeros(1, 10))
    assert not policy.stops(torch.tensor([[9.0, 0, 0, 0]]))


def test_exits_are_compared_at_the_start_and_at_intervals():
    policy = DynamicDraft([2], depth=10, head=1.0, draft_head=1.0)
    policy.compare({2: 0.9})
    looks = []
    for _ in range(17):
        looks.append(bool(policy.watched))
        policy.choose()
    assert [at for at, look in enumerate(looks) if look] == [0, 8, 16]
