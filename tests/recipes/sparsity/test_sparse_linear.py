import pytest
import torch

from weightops.recipes.sparsity.sparse_linear import SparseLinear, _SparseProduct
from weightops.recipes.sparsity.weight_gradient import Positions, WeightGradient

POSITIONS = torch.tensor([0, 4, 5, 9, 14])


def layer(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    sparse = SparseLinear(torch.nn.Linear(5, 3, bias=bias, dtype=dtype), len(POSITIONS))
    sparse.place(POSITIONS)
    return sparse


@pytest.mark.parametrize("bias", [True, False])
def test_the_backward_pass_is_the_derivative_of_the_forward_pass(bias):
    sparse = layer(bias=bias)

    def outputs(inputs, learned):
        sparse.place(POSITIONS, learned.detach())
        return _SparseProduct.apply(inputs, learned, sparse)

    inputs = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    learned = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (inputs, learned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_of_the_gradient_are_those_of_the_whole_gradient_however_they_are_computed(dtype, monkeypatch):
    monkeypatch.setattr("weightops.recipes.sparsity.weight_gradient.BLOCK", 60)  # three rows at a time
    torch.manual_seed(0)
    outputs, inputs = torch.randn(30, 11).to(dtype), torch.randn(30, 20).to(dtype)
    positions = Positions.of(torch.randperm(220)[:40].sort().values, 11, 20)
    gradient, whole = WeightGradient(outputs, inputs), outputs.double().T @ inputs.double()
    expected = whole.reshape(-1)[positions.flat.long()]
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.1}
    torch.testing.assert_close(gradient.at(positions).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient._gathered(positions).double(), expected, **close)  # as on a GPU
    blocks = torch.cat([block for _, block in gradient.blocks()])
    torch.testing.assert_close(blocks.double(), whole, **close)


def test_no_whole_gradient_and_no_copy_of_the_weight_is_made_in_a_step():
    linear = torch.nn.Linear(600, 500, bias=False)
    sparse = SparseLinear(linear, 30)
    sparse.place(torch.arange(0, 30_000, 1000))
    inputs = torch.randn(4, 600, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        sparse(inputs).sum().backward()
        sparse.rewrite()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert sparse.weight is linear.weight
    assert largest < linear.weight.nbytes / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_that_are_given_up_get_their_first_values_back_bit_for_bit(dtype):
    sparse = layer(dtype)
    before = sparse.weight.detach().clone()
    with torch.no_grad():
        sparse.learned.copy_(torch.tensor([1.0, 1e-3, 300.0, -0.7, 1e30]))
    sparse.rewrite()
    moved = (sparse.weight != before).reshape(-1).nonzero().reshape(-1)
    assert set(moved.tolist()) <= set(POSITIONS.tolist())
    assert len(moved) >= 4
    sparse.place(torch.tensor([1, 2, 3, 6, 7]))
    assert torch.equal(sparse.weight, before)


def test_quantised_values_are_a_base_like_any_other():
    """A base whose values were rounded to 16 levels trains, and reverts to exactly these."""
    sparse = layer(torch.float32)
    with torch.no_grad():
        sparse.weight.copy_((sparse.weight * 8).round() / 8)
    sparse.place(POSITIONS)
    levels = sparse.weight.detach().clone()
    sparse(torch.randn(4, 5)).square().sum().backward()
    with torch.no_grad():
        sparse.learned.add_(sparse.learned.grad, alpha=-0.1)
    sparse.rewrite()
    assert not torch.equal(sparse.weight, levels)
    sparse.revert()
    assert torch.equal(sparse.weight, levels)
