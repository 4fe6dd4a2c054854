import torch
from hypothesis import given
from hypothesis import strategies as st

from weightops.recipes.floor.log_probabilities import log_probabilities


@given(st.lists(st.integers(0, 5) | st.just(-100), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 9))
def test_chunks_give_the_values_and_the_gradient_of_one_softmax_over_everything(tokens, chunk, seed):
    logits = torch.randn(len(tokens), 6, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    present = [(place, token) for place, token in enumerate(tokens) if token != -100]
    whole = torch.stack([*(logits.log_softmax(-1)[place, token] for place, token in present), logits.sum() * 0])[:-1]
    chunked = log_probabilities(logits, torch.tensor(tokens), chunk)
    torch.testing.assert_close(chunked, whole)
    weights = torch.arange(1.0, len(present) + 1)
    (expected,) = torch.autograd.grad((whole * weights).sum() + logits.sum() * 0, logits)
    (found,) = torch.autograd.grad((chunked * weights).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_no_fp32_copy_of_all_logits_is_kept_for_the_backward_pass():
    logits = torch.randn(64, 1000, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        log_probabilities(logits, torch.zeros(64, dtype=torch.int64), chunk=8).sum()
    assert not [tensor for tensor in kept if tensor.dtype == torch.float32 and tensor.numel() >= 8 * 1000]
