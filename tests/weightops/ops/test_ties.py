import torch
from merge_cases import normal

from weightops.ops.ties import agreement, ties


def test_ties_by_hand():
    # Half of 16 entries, eight, stay of each model: those of magnitude 2 and up. The first loses its ones, the second
    # its ones too. Sums: 6 0 -5 0 / 2 4 0 5 / -2 7 0 -2 / 0 0 4 2; a sum of zero elects plus.
    # Averages of those that agree: (4+2)/2 3 -5 0 / 2 4 6 5 / (-2) 7 0 -2 / 0 0 8 2.
    first = [[4.0, -3.0, 1.0, 0.0], [2.0, 1.0, -6.0, 5.0], [1.0, 7.0, 0.0, -2.0], [0.0, 1.0, 8.0, 1.0]]
    second = [[2.0, 3.0, -5.0, 0.0], [1.0, 4.0, 6.0, 0.0], [-2.0, -1.0, 0.0, 1.0], [0.0, 0.0, -4.0, 2.0]]
    expected = [[3.0, 3.0, -5.0, 0.0], [2.0, 4.0, 6.0, 5.0], [-2.0, 7.0, 0.0, -2.0], [0.0, 0.0, 8.0, 2.0]]
    assert ties(torch.tensor([first, second]), density=0.5).tolist() == expected


def test_equal_magnitudes_at_the_threshold_stay_in_flat_order():
    assert ties(torch.tensor([[[1.0, -1.0], [1.0, 2.0]]]), density=0.5).tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_weights_elect_and_average():
    # 1 * 3 + 4 * -1 = -1 elects minus; normalised by the weight of the one that agrees: -4 / 4.
    deltas = torch.tensor([[3.0], [-1.0]])
    assert ties(deltas, weight=[1.0, 4.0]).tolist() == [-1.0]
    assert ties(deltas, weight=[1.0, 4.0], normalize=False, lambda_=0.5).tolist() == [-2.0]
    # Weights 1 and -1 make 3 and 1, which agree; their weights sum to zero, so nothing is divided.
    assert ties(deltas, weight=[1.0, -1.0]).tolist() == [4.0]


def test_rescale_restores_the_l1_norm():
    # Keep -3 of (1, -3): L1 4 / 3.
    torch.testing.assert_close(ties(torch.tensor([[1.0, -3.0]]), density=0.5, rescale=True), torch.tensor([0.0, -4.0]))


def test_agreement_of_a_tie_is_with_plus():
    deltas = normal(0, 1, 20)
    assert torch.equal(agreement(torch.cat([deltas, -deltas])), torch.cat([deltas > 0, deltas < 0]))
