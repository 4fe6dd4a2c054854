import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.recipes.sparsity.first_entries import drawn, large_after_rank_reduction
from weightops.recipes.sparsity.largest_entries import top_of_blocks, top_of_outer_product

numbers = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.floats(0, 2.0**60, width=32))
vectors = st.lists(numbers, min_size=1, max_size=7).map(torch.tensor)


@given(vectors, vectors, st.integers(0, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_the_top_of_an_outer_product_is_that_of_the_formed_one_with_ties_and_zeros(rows, columns, count, data):
    scores = torch.outer(rows.double(), columns.double()).reshape(-1)
    without = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(scores) - 1)))), dtype=torch.long)
    free = torch.tensor([i for i in range(len(scores)) if i not in without.tolist()], dtype=torch.long)
    expected = free[torch.sort(scores[free], descending=True, stable=True).indices[:count]].sort().values
    flat, values = top_of_outer_product(rows, columns, count, without)
    assert flat.tolist() == expected.tolist()
    assert torch.equal(values, scores[expected])


def test_the_outer_product_is_not_formed():
    rows, columns = torch.rand(3000), torch.ones(2000)  # all columns tie
    none = torch.empty(0, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profile:
        flat, _ = top_of_outer_product(rows, columns, 5000, none)
    assert len(flat) == 5000
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 3000 * 2000 / 10


@given(st.integers(1, 400), st.booleans(), st.integers(1, 40), st.integers(0, 5), st.sets(st.integers(0, 3999)))
@settings(max_examples=60, deadline=None)
def test_the_top_of_blocks_of_rows_is_the_top_of_what_is_finite_in_the_matrix(count, ties, step, seed, spoilt):
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(40, 100, generator=draw)
    matrix = (matrix * 2).round() if ties else matrix
    matrix.view(-1)[sorted(spoilt)] = torch.tensor([float("nan"), float("-inf")]).repeat(2000)[: len(spoilt)]
    flat, entries = top_of_blocks(((i, matrix[i : i + step]) for i in range(0, 40, step)), count)
    line = matrix.reshape(-1)
    finite = line.isfinite().nonzero().reshape(-1)
    expected = finite[torch.sort(line[finite].abs(), descending=True, stable=True).indices[:count]].sort().values
    assert torch.equal(flat, expected)
    assert torch.equal(entries, line[expected])


def test_drawn_positions_are_distinct_decided_by_seed_and_name_and_cover_everything():
    once = drawn(10_000, 300, 0, "w")
    assert torch.equal(once, drawn(10_000, 300, 0, "w"))
    assert not torch.equal(once, drawn(10_000, 300, 1, "w"))
    assert not torch.equal(once, drawn(10_000, 300, 0, "v"))
    assert len(once.unique()) == 300
    assert drawn(20, 15, 0, "w").unique().numel() == 15
    thirds = sum(torch.histc(drawn(9000, 300, seed, "w").float(), 3, 0, 9000) for seed in range(30))
    assert (thirds - 3000).abs().max() < 250  # 4.5 standard deviations; about 45 each
    singles = torch.bincount(torch.cat([drawn(6, 2, seed, "w") for seed in range(600)]))
    assert (singles - 200).abs().max() < 60


def test_lift_chooses_the_largest_entries_of_the_low_rank_part():
    torch.manual_seed(0)
    left, right = torch.randn(30, 2), torch.randn(20, 2)
    low = 10 * left @ right.T
    weight = low + 0.01 * torch.randn(30, 20)
    weight[3, 4] += 40  # large, but no part of what two ranks can hold
    u, s, v = torch.linalg.svd(weight)
    expected = top_of_blocks([(0, (u[:, :2] * s[:2]) @ v[:2])], 25)[0]
    chosen = large_after_rank_reduction(weight, 25, 2, "w")
    assert torch.equal(chosen, expected)
    assert not torch.equal(chosen, top_of_blocks([(0, weight)], 25)[0])
