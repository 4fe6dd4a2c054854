import pytest
import torch
from merge_cases import normal

from weightops.errors import WeightopsError
from weightops.ops.linear import linear
from weightops.ops.passthrough import passthrough
from weightops.ops.task_arithmetic import task_arithmetic

A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, -2.0], [3.0, 0.0]])


def test_linear_by_hand():
    # (1 A + 3 B) / 4: (1+15)/4 (2-6)/4 / (3+9)/4 (4+0)/4
    assert linear(torch.stack([A, B]), weight=[1.0, 3.0]).tolist() == [[4.0, -1.0], [3.0, 1.0]]
    assert linear(torch.stack([A, B]), weight=[1.0, 3.0], normalize=False).tolist() == [[16.0, -4.0], [12.0, 4.0]]


def test_linear_with_weights_that_cancel_is_an_error():
    with pytest.raises(WeightopsError, match="sum to 0"):
        linear(torch.stack([A, B]), weight=[1.0, -1.0])
    # Unnormalised it is a difference, and allowed.
    assert torch.equal(linear(torch.stack([A, B]), weight=[1.0, -1.0], normalize=False), A - B)


def test_task_arithmetic_by_hand():
    # 2 A - 1 B: 2-5 4+2 / 6-3 8-0; the weights sum to 1; lambda 0.5 halves it.
    stack = torch.stack([A, B])
    assert task_arithmetic(stack, weight=[2.0, -1.0]).tolist() == [[-3.0, 6.0], [3.0, 8.0]]
    assert task_arithmetic(stack, weight=[2.0, -1.0], lambda_=0.5).tolist() == [[-1.5, 3.0], [1.5, 4.0]]
    # (A + B) / 2 when normalised with equal weights; weights that cancel are left alone.
    assert task_arithmetic(stack, normalize=True).tolist() == [[3.0, 0.0], [3.0, 2.0]]
    assert torch.equal(task_arithmetic(stack, weight=[1.0, -1.0], normalize=True), A - B)


def test_passthrough_copies_every_bit():
    model = normal(0, 1, 5, 5)
    assert torch.equal(passthrough(model), model[0])
    assert torch.equal(passthrough(model, scale=[2.0]), model[0] * 2)
