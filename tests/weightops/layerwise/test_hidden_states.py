"""In memory or in a file, a row's hidden states are what was put there last."""

import pytest
import torch

from weightops.layerwise.hidden_states import HiddenStates


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_rows_of_any_length_come_back_in_any_order(kept, tmp_path):
    lengths = [3, 1, 5]
    rows = [torch.randn(1, length, 4) for length in lengths]
    with HiddenStates(lengths, 4, kept=kept, folder=tmp_path) as hidden:
        for number in (2, 0, 1):
            hidden[number] = torch.zeros_like(rows[number])
            hidden[number] = rows[number]
        assert all(torch.equal(hidden[number], row) for number, row in enumerate(rows))
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_another_length_is_refused():
    with HiddenStates([3], 4) as hidden, pytest.raises(ValueError, match="shape"):
        hidden[0] = torch.zeros(1, 2, 4)
