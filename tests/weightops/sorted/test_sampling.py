"""Tokens are drawn from the distribution that is asked for, also by way of a draft."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.sorted.sampling import Chooser, Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def test_top_k_and_top_p_by_hand():
    chances = Sampling(1.0, top_k=2).probabilities(LOGITS)[0]
    torch.testing.assert_close(chances, torch.tensor([0.7310586, 0.2689414, 0.0, 0.0]))
    # e^2, e, 1, 1/e of their sum: 0.644, 0.237, 0.087, 0.032; the first two hold 0.88
    assert Sampling(1.0, top_p=0.85).probabilities(LOGITS)[0].count_nonzero() == 2
    assert Sampling(1.0, top_p=0.9).probabilities(LOGITS)[0].count_nonzero() == 3
    assert Sampling(1.0, top_p=0.01).probabilities(LOGITS)[0].tolist() == [1, 0, 0, 0]


def test_greedy_keeps_a_draft_up_to_its_first_wrong_token():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 0], [1, 2, 3, 0]]), 4).float()
    draft = torch.tensor([[1, 0, 3], [1, 2, 3]])
    accepted, following = Chooser(Sampling(), torch.device("cpu")).accept(draft, None, logits)
    assert accepted.tolist() == [1, 3]
    assert following.tolist() == [2, 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.3, 2))
def test_what_comes_out_of_a_draft_is_distributed_as_the_whole_model_says(seed, temperature):
    """One drafted token, 20,000 rows: the first token that stays has the wanted frequencies."""
    draw = torch.Generator().manual_seed(seed)
    wanted, drafted_from = torch.randn(1, 5, generator=draw), torch.randn(1, 5, generator=draw)
    sampling = Sampling(temperature, seed=seed)
    rows = 20_000
    chooser = Chooser(sampling, torch.device("cpu"))
    draft, chances = chooser.choose(drafted_from.expand(rows, 5))
    accepted, following = chooser.accept(draft[:, None], chances[:, None], wanted.expand(rows, 2, 5))
    first = torch.where(accepted == 1, draft, following)
    frequencies = torch.bincount(first, minlength=5) / rows
    torch.testing.assert_close(frequencies, sampling.probabilities(wanted)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "changed", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(changed):
    with pytest.raises(WeightopsError, match=f"{next(iter(changed))} is .*; it must be"):
        Sampling(**changed)
