import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.spectral import iso_c, iso_cts, polar, tsv_m

CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def truncated(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def test_tsv_m_by_hand():
    # Two tasks of a 2 x 2: one triple each, 2 along (e1, e1) and 1 along (d, e2) with d = (e1 + e2) / sqrt 2.
    # Right vectors are orthogonal already. Left vectors e1 and d, 45 degrees apart, open evenly to 90: they turn by
    # 22.5 degrees to -22.5 and 67.5.
    half = 0.5**0.5
    deltas = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, half], [0.0, half]]], dtype=torch.float64)
    angle = torch.deg2rad(torch.tensor([-22.5, 67.5], dtype=torch.float64))
    expected = torch.stack([angle.cos(), angle.sin()]) * torch.tensor([2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(tsv_m(deltas), expected, **CLOSE)


@given(seed=seeds, rows=st.integers(1, 6), columns=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_tsv_m_of_one_task_is_that_task(seed, rows, columns):
    delta = normal(seed, 1, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(tsv_m(delta), delta[0], **CLOSE)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_tsv_m_of_the_same_task_twice_is_its_better_half(seed):
    delta = normal(seed, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(tsv_m(torch.stack([delta, delta])), truncated(delta, 2), **CLOSE)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_tsv_m_of_orthogonal_low_rank_tasks_is_their_sum(seed):
    # Each of rank 1 in its own rows and columns: nothing to make orthogonal, and the zero directions take no part.
    deltas = torch.zeros(2, 6, 6, dtype=torch.float64)
    u, v = normal(seed, 2, 3, dtype=torch.float64), normal(seed + 1, 2, 3, dtype=torch.float64)
    deltas[0, :3, :3], deltas[1, 3:, 3:] = torch.outer(u[0], v[0]), torch.outer(u[1], v[1])
    torch.testing.assert_close(tsv_m(deltas), deltas.sum(0), **CLOSE)


def test_more_tasks_than_rank_still_get_one_direction_each():
    assert tsv_m(normal(0, 5, 3, 4)).abs().sum() > 0


def test_iso_c_by_hand():
    # The sum is diag(3, -1): values 3 and 1, mean 2; the directions stay.
    deltas = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, -2.0]]])
    torch.testing.assert_close(iso_c(deltas), torch.tensor([[2.0, 0.0], [0.0, -2.0]]))


@given(seed=seeds, n=st.integers(1, 4), name=st.sampled_from([iso_c, iso_cts]))
@settings(max_examples=25, deadline=None)
def test_iso_singular_values_are_equal(seed, n, name):
    values = torch.linalg.svdvals(name(normal(seed, n, 6, 9, dtype=torch.float64)))
    torch.testing.assert_close(values, values[:1].expand(6), **CLOSE)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_iso_c_keeps_the_nuclear_norm_of_the_sum(seed):
    deltas = normal(seed, 3, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(iso_c(deltas)).sum(), torch.linalg.svdvals(deltas.sum(0)).sum())


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_iso_cts_with_one_task_or_only_common_space_is_iso_c(seed):
    deltas = normal(seed, 3, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(iso_cts(deltas[:1]), iso_c(deltas[:1]), **CLOSE)
    torch.testing.assert_close(iso_cts(deltas, common_space_fraction=1.0), iso_c(deltas), **CLOSE)


def test_iso_cts_by_hand():
    # 4 x 4 in the diagonal, fraction 1/2, two tasks: the sum diag(5, 4, 1, 1) keeps e1, e2; outside them the first task
    # has 3 on e3, the second 2 on e4 (and lesser ones opposite). All orthogonal; mean of 5, 4, 3, 2 is 3.5.
    deltas = torch.diag_embed(torch.tensor([[5.0, 0.0, 3.0, -1.0], [0.0, 4.0, -2.0 + 0.5, 2.0]]))
    merged = iso_cts(deltas, common_space_fraction=0.5)
    torch.testing.assert_close(merged, torch.diag(torch.tensor([3.5, 3.5, 3.5, 3.5])))


def test_low_rank_tasks_gain_no_directions_from_rounding_noise():
    # Two of rank 1 in fp32: their sum holds both, and what lies outside it is noise, which must not be blown up.
    deltas = normal(0, 2, 8, 1) @ normal(1, 2, 1, 8)
    for method in (iso_c, iso_cts, tsv_m):
        values = torch.linalg.svdvals(method(deltas))
        assert values[1] > 0.1
        assert values[2] < 1e-4


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_iso_cts_fills_the_rank_where_it_does_not_divide(seed):
    # 5 directions, none asked for in common, 3 tasks: one each, and two are left to the sum.
    deltas = normal(seed, 3, 5, 7, dtype=torch.float64)
    u, s, _ = torch.linalg.svd(deltas.sum(0), full_matrices=False)
    outside = [torch.linalg.svdvals(delta - u[:, :2] @ u[:, :2].mT @ delta)[:1] for delta in deltas]
    values = torch.linalg.svdvals(iso_cts(deltas, common_space_fraction=0.0))
    torch.testing.assert_close(values, torch.cat([s[:2], *outside]).mean().expand(5), **CLOSE)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_polar_is_orthonormal_and_the_nearest(seed):
    matrix = normal(seed, 6, 4, dtype=torch.float64)
    nearest = polar(matrix)
    torch.testing.assert_close(nearest.mT @ nearest, torch.eye(4, dtype=torch.float64), **CLOSE)
    other = torch.linalg.qr(normal(seed + 1, 6, 4, dtype=torch.float64)).Q
    assert (matrix - nearest).norm() <= (matrix - other).norm()


def test_tensors_that_are_not_matrices_are_averaged():
    for method in (tsv_m, iso_c, iso_cts):
        for shape in [(5,), (2, 3, 4)]:
            deltas = normal(0, 3, *shape)
            assert torch.equal(method(deltas), deltas.mean(0))
