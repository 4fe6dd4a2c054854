import torch
from hypothesis import given, settings
from merge_cases import normal, seeds

from weightops.ops.model_stock import model_stock


def test_model_stock_by_hand():
    # Three task vectors with cosines 0, 0.8, 0.6: mean 1.4/3; t = 3c / (1 + 2c) = 1.4 / (1 + 2.8/3) = 4.2/5.8.
    deltas = torch.tensor([[2.0, 0.0], [0.0, 5.0], [4.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(model_stock(deltas), 4.2 / 5.8 * deltas.mean(0))


def test_model_stock_row_by_row_by_hand():
    # Rows: parallel (t = 1), orthogonal (t = 0), cosine 0.6 (t = 1.2 / 1.6 = 0.75).
    deltas = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])
    expected = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.75 * 2.0, 0.75 * 2.0]])
    torch.testing.assert_close(model_stock(deltas, filter_wise=True), expected)


def test_opposite_task_vectors_leave_the_base():
    assert model_stock(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).tolist() == [0.0, 0.0]  # 1 + cos is the pole


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_filter_wise_is_model_stock_of_each_row(seed):
    deltas = normal(seed, 3, 4, 6)
    rows = torch.stack([model_stock(deltas[:, i]) for i in range(4)])
    torch.testing.assert_close(model_stock(deltas, filter_wise=True), rows)
