import numpy as np
import torch

from weightops.ops.gram import cosines, gram, mix, norms


def test_gram_by_hand():
    # (1, 2) and (3, -1): 5, 1, 10; row by row of [n, rows, length] likewise.
    stack = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    expected = np.array([[5.0, 1.0], [1.0, 10.0]])
    assert gram(stack).tolist() == expected.tolist()
    assert gram(torch.stack([stack, 2 * stack], 1)).tolist() == [expected.tolist(), (4 * expected).tolist()]


def test_gram_of_fp32_vectors_is_summed_in_fp64():
    # 1 + 1e-8 is 1 in fp32: the angle between nearly parallel vectors would be lost.
    stack = torch.tensor([[1.0, 1e-4], [1.0, 0.0]])
    assert gram(stack)[0, 0] > 1


def test_lengths_and_cosines_by_hand():
    products = np.array([[9.0, 6.0, 0.0], [6.0, 16.0, 0.0], [0.0, 0.0, 0.0]])
    assert norms(products).tolist() == [3.0, 4.0, 0.0]
    assert cosines(products).tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_mix_row_by_row():
    stack = torch.tensor([[[1.0, 1.0], [2.0, 2.0]], [[10.0, 10.0], [20.0, 20.0]]])
    assert mix(np.array([[1.0, 0.0], [0.5, 1.0]]), stack).tolist() == [[1.0, 1.0], [21.0, 21.0]]
