import torch

from weightops.rows.padding import left_padded, right_padded

ROWS = [[7, 8, 9], [5]]


def test_left_padded_rows_end_together_and_count_their_positions_from_their_first_token():
    batch = left_padded(ROWS, 0)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_right_padded_rows_begin_together():
    batch = right_padded(ROWS, 0)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].dtype == torch.int64
