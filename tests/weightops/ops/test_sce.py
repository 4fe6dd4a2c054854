import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import normal, seeds

from weightops.ops.sce import sce, selected


def test_sce_by_hand():
    # Energies 1+4+0 = 5 and 9+1+1 = 11, of 16. Signs: -2, +3, +1 elect -, +, +.
    # Entry 0: only the second agrees, -3. Entry 1: both, (5*2 + 11*1) / 16. Entry 2: the second, 1.
    merged = sce(torch.tensor([[1.0, 2.0, 0.0], [-3.0, 1.0, 1.0]]))
    torch.testing.assert_close(merged, torch.tensor([-3.0, 21 / 16, 1.0]))


def test_selection_by_hand():
    # Half the differences 2, 0.5, 0, 0.5, 1 squared: four are not zero, half of four is two: entries 0 and 4.
    deltas = torch.tensor([[5.0, 1.0, 3.0, 0.0, 1.0], [1.0, 0.0, 3.0, 1.0, 3.0]])
    assert selected(deltas, 0.5).tolist() == [True, False, False, False, True]
    # Three quarters is three: of the two entries that differ by 0.5 the first.
    assert selected(deltas, 0.75).tolist() == [True, True, False, False, True]
    # The energies are then of the selected alone: 25 + 1 and 1 + 9.
    torch.testing.assert_close(
        sce(deltas, select_topk=0.5), torch.tensor([(26 * 5 + 10) / 36, 0, 0, 0, (26 + 30) / 36])
    )


@given(seed=seeds, share=st.floats(0, 0.99))
@settings(max_examples=30, deadline=None)
def test_so_many_of_those_that_differ_are_selected(seed, share):
    deltas = normal(seed, 3, 40)
    deltas[:, ::4] = deltas[0, ::4]  # ten on which the models agree
    assert int(selected(deltas, share).sum()) == int(30 * share)
    assert not selected(deltas, share)[::4].any()


def test_small_task_vectors_are_weighted_by_energy_too():
    # Both entries 1e-5: energies 1 and 9 parts of 10, not halves.
    merged = sce(torch.tensor([[1e-5], [3e-5]]))
    torch.testing.assert_close(merged, torch.tensor([2.8e-5]), rtol=1e-6, atol=0)
