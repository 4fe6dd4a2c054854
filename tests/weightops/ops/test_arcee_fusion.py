import math

import torch
from hypothesis import given, settings
from merge_cases import normal, seeds

from weightops.ops.arcee_fusion import arcee_fusion, fusion_threshold, importance


def test_importance_by_hand():
    # Base (0, 0) is (1/2, 1/2), model (ln 3, 0) is (3/4, 1/4): divergence 3/4 ln 3/2 + 1/4 ln 1/2; changes ln 3 and 0.
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    score = importance(torch.tensor([math.log(3), 0.0]), torch.zeros(2))
    torch.testing.assert_close(
        score, torch.tensor([math.log(3) * divergence, 0.0], dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


def test_a_vanishing_probability_counts_as_1e_8():
    # (1, 0) against (0, 1), each plus 1e-8: the divergence is ln 1e8, not infinite; both changes are 1000.
    score = importance(torch.tensor([1000.0, 0.0]), torch.tensor([0.0, 1000.0]))
    torch.testing.assert_close(score, torch.full((2,), 1000 * math.log(1e8), dtype=torch.float64), rtol=1e-5, atol=0)


def test_threshold_by_hand():
    # Six entries: ranks floor(5/4) = 1, floor(10/4) = 2, floor(15/4) = 3, so 2, 3, 5: 3 + 1.5 * 3.
    assert float(fusion_threshold(torch.tensor([9.0, 2.0, 1.0, 5.0, 8.0, 3.0]))) == 7.5


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_the_important_entries_are_the_models_and_the_rest_the_bases(seed):
    base, model = normal(seed, 2, 6, 8)
    score = importance(model, base)
    ranked = sorted(score.flatten().tolist())  # 48 entries: ranks 11, 23 and 35
    taken = score >= ranked[23] + 1.5 * (ranked[35] - ranked[11])
    assert torch.equal(arcee_fusion(model.unsqueeze(0), base=base), model.where(taken, base))


def test_an_entry_at_the_threshold_is_taken():
    # Equal scores: the quartiles coincide and every entry lies at the threshold.
    assert arcee_fusion(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), base=torch.full((2, 2), 0.5)).tolist() == [
        [0.0, 1.0],
        [1.0, 0.0],
    ]
