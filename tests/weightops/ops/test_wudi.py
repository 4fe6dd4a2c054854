import torch
from hypothesis import given, settings
from merge_cases import normal, seeds

from weightops.ops.wudi import interference, wudi


def test_interference_by_hand():
    # Tasks (1, 0) and (1, 1) as 1 x 2 matrices; at their sum (2, 1) the rest is (1, 1) and (1, 0), products 1 and 1,
    # squared and divided by 1 and 2.
    deltas = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    assert float(interference(deltas.sum(0), deltas)) == 1.5


def test_one_step_by_hand():
    # Gradient there: 2 * [1 * (1, 0) + 1 * (1, 1) / 2] = (3, 1); Adam's first step is the step size against its sign.
    deltas = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    torch.testing.assert_close(wudi(deltas, iter_num=1, lr=0.25), torch.tensor([[1.75, 0.75]]))


@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_the_written_gradient_and_adam_are_torchs(seed):
    deltas = normal(seed, 3, 4, 5, dtype=torch.float64)
    merged = deltas.sum(0).requires_grad_()
    adam = torch.optim.Adam([merged], lr=1e-2)
    for _ in range(20):
        adam.zero_grad()
        interference(merged, deltas).backward()
        adam.step()
    torch.testing.assert_close(wudi(deltas, iter_num=20, lr=1e-2), merged.detach())


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_descent_lowers_the_interference_of_the_sum(seed):
    deltas = normal(seed, 3, 4, 5)
    assert interference(wudi(deltas, lr=1e-3), deltas) < interference(deltas.sum(0), deltas)


def test_one_task_orthogonal_tasks_and_vectors():
    one = normal(0, 1, 4, 5)
    assert torch.equal(wudi(one), one[0])
    # Tasks that read different inputs do not interfere: the sum stays. One that changed nothing has no part.
    deltas = torch.zeros(3, 2, 4)
    deltas[0, :, :2], deltas[1, :, 2:] = normal(1, 2, 2), normal(2, 2, 2)
    torch.testing.assert_close(wudi(deltas), deltas.sum(0))
    assert torch.equal(wudi(normal(3, 2, 5)), normal(3, 2, 5).mean(0))
