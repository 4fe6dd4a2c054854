import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.errors import WeightopsError
from weightops.ops.slerp import multislerp, nuslerp, slerp


def test_slerp_by_hand():
    # Base (2, 0), model (0, 1): a right angle, so t = 1/3 gives sin 60, sin 30: (2 * 0.8660, 0.5).
    merged = slerp(torch.tensor([[0.0, 1.0]]), base=torch.tensor([2.0, 0.0]), t=1 / 3)
    torch.testing.assert_close(merged, torch.tensor([2 * math.sqrt(0.75), 0.5]))


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_slerp_starts_at_the_base_and_ends_at_the_model(seed):
    base, model = normal(seed, 2, 3, 4)
    assert torch.equal(slerp(model.unsqueeze(0), base=base, t=0.0), base)
    assert torch.equal(slerp(model.unsqueeze(0), base=base, t=1.0), model)


@given(seed=seeds, t=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_slerp_between_unit_vectors_stays_on_the_sphere_at_the_angle_asked_for(seed, t):
    base, model = torch.nn.functional.normalize(normal(seed, 2, 12, dtype=torch.float64), dim=1)
    merged = slerp(model.unsqueeze(0), base=base, t=t)
    assert float(merged.norm()) == pytest.approx(1)
    assert float(merged @ base) == pytest.approx(math.cos(t * math.acos(float(base @ model))))


def test_slerp_of_parallel_opposite_and_zero_vectors():
    base = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(slerp(3 * base.unsqueeze(0), base=base, t=0.25), 1.5 * base)  # the line: 0.75 + 0.25 * 3
    torch.testing.assert_close(slerp(-base.unsqueeze(0), base=base, t=0.25), 0.5 * base)  # 0.75 - 0.25
    # Zero counts as orthogonal: sin 45 of the base.
    torch.testing.assert_close(slerp(torch.zeros(1, 2), base=base, t=0.5), math.sqrt(0.5) * base)


def test_slerp_takes_the_line_beyond_cosine_0_9995():
    # 0.02 short of opposite (cosine -0.9998) the curve would go round by (0, 1); at 0.04 (-0.9992) it does.
    base = torch.tensor([1.0, 0.0], dtype=torch.float64)
    near, far = (torch.tensor([[-math.cos(a), math.sin(a)]], dtype=torch.float64) for a in (0.02, 0.04))
    torch.testing.assert_close(slerp(near, base=base, t=0.5), (near[0] + base) / 2)
    assert float(slerp(far, base=base, t=0.5)[1]) > 0.99


def test_nuslerp_by_hand():
    # Weights 1 and 2: t = 2/3, at a right angle sin 30, sin 60.
    models = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(nuslerp(models, weight=[1.0, 2.0]), torch.tensor([1.0, 4 * math.sqrt(0.75)]))
    # Weights that cancel: half way.
    half = math.sqrt(0.5)
    torch.testing.assert_close(nuslerp(models, weight=[1.0, -1.0]), torch.tensor([2 * half, 4 * half]))
    # About a base the differences turn: (2, 0) and (0, 4) from (1, 1).
    base = torch.tensor([1.0, 1.0])
    torch.testing.assert_close(nuslerp(models + base, base=base), torch.tensor([2 * half + 1, 4 * half + 1]))


def test_nuslerp_row_by_row_by_hand():
    # Rows at a right angle, then parallel: slerp of the first, line of the second. Columns of the transpose likewise.
    models = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [4.0, 0.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [3.0, 0.0]])
    torch.testing.assert_close(nuslerp(models, nuslerp_flatten=False), expected)
    turned = nuslerp(models.mT, nuslerp_flatten=False, nuslerp_row_wise=True)
    torch.testing.assert_close(turned, expected.mT)
    assert not torch.allclose(nuslerp(models), expected)


def test_multislerp_by_hand():
    # Unit vectors (1, 0) and (0, 1), weights 3/4 and 1/4: direction (3, 1) / sqrt 10, length 3/4 * 2 + 1/4 * 4 = 2.5.
    merged = multislerp(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), weight=[3.0, 1.0])
    torch.testing.assert_close(merged, 2.5 * torch.tensor([3.0, 1.0]) / math.sqrt(10))


def test_multislerp_adds_eps_to_the_lengths():
    # With eps 1 the unit vectors are (2/3, 0) and (0, 4/5): direction (5, 6) / sqrt 61, mean length 3. (The mean of the
    # two is shorter than 1, so they would be averaged as they are; weights 3 and 3, not normalised, make it longer.)
    merged = multislerp(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), weight=3.0, normalize_weights=False, eps=1.0)
    torch.testing.assert_close(merged, 18 * torch.tensor([5.0, 6.0]) / math.sqrt(61))


def test_multislerp_of_directions_that_cancel():
    torch.testing.assert_close(
        multislerp(torch.tensor([[2.0, 0.0], [-4.0, 0.0]])), torch.tensor([-1.0, 0.0])
    )  # the mean
    three = torch.tensor([[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]).double()
    with pytest.raises(WeightopsError, match="cancel out"):
        multislerp(torch.nn.functional.normalize(three, dim=1), eps=1e-6)


def test_multislerp_of_models_equal_to_the_base_is_the_base():
    base = normal(0, 4)
    assert torch.equal(multislerp(base.expand(3, 4), base=base), base)
