"""Products of a few tokens are those of a linear layer, up to rounding, and a model is given back as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightops.sorted.few_tokens import fast_few_tokens, product


@pytest.mark.parametrize("tokens", [(), (1,), (1, 1), (2, 1), (1, 3), (4,), (5,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_product_is_that_of_a_linear_layer_up_to_rounding(tokens, dtype):
    torch.manual_seed(0)
    hidden, layer = torch.randn(*tokens, 12, dtype=dtype), nn.Linear(12, 7, dtype=dtype)
    for bias in (None, layer.bias):
        expected = nn.functional.linear(hidden, layer.weight, bias)
        torch.testing.assert_close(product(hidden, layer.weight, bias), expected)


def test_layers_multiply_so_within_the_block_only_and_wrapped_ones_never():
    class Scaled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4), nn.Linear(4, 4))
    model[2].forward = lambda hidden: hidden + 1
    hidden = torch.randn(2, 4)
    expected = model(hidden)
    with pytest.raises(RuntimeError, match="stop"), fast_few_tokens(model):
        assert ["forward" in vars(layer) for layer in model] == [True, False, True]
        torch.testing.assert_close(model(hidden), expected)
        raise RuntimeError("stop")
    assert ["forward" in vars(layer) for layer in model] == [False, False, True]
    assert torch.equal(model(hidden), expected)
