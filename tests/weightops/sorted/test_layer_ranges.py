"""Layers that run in parts with one cache give what the whole model gives."""

from __future__ import annotations

import pytest
import torch
from early_exits import PLAIN_STACKS, model_of

from weightops.errors import WeightopsError
from weightops.sorted.layer_ranges import LayerRanges, RangeCache


@pytest.mark.parametrize("family", PLAIN_STACKS)
@torch.inference_mode()
def test_lower_layers_one_token_at_a_time_and_upper_ones_at_once_give_the_models_logits(family):
    model = model_of(family)
    tokens = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).logits
    cache, states = RangeCache(), []
    with LayerRanges(model) as ranges:
        prompt = ranges.run(tokens[:, :7], cache, logits=0).logits
        states = [ranges.run(tokens[:, at : at + 1], cache, last=2, logits=None).states[2] for at in range(7, 12)]
        rest = ranges.run(tokens[:, 7:], cache, first=2, entering=torch.cat(states, 1), logits=0).logits
    torch.testing.assert_close(torch.cat([prompt, rest], 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@torch.inference_mode()
def test_the_logits_of_an_exit_are_those_of_a_model_that_ends_there(family):
    model = model_of(family)
    tokens = torch.arange(3, 12)[None]
    with LayerRanges(model) as ranges:
        at_exit = ranges.run(tokens, RangeCache(), last=2, logits=0)
        read = ranges.read_out(at_exit.states[2])
    layers = model.get_decoder()
    name = "h" if family == "gpt2" else "layers"
    setattr(layers, name, getattr(layers, name)[:2])
    model.config.num_hidden_layers = 2
    assert torch.equal(at_exit.logits, model(tokens, use_cache=False).logits)
    assert torch.equal(read, at_exit.logits)


@torch.inference_mode()
def test_tokens_taken_back_leave_no_trace():
    model = model_of("llama")
    tokens = torch.arange(3, 12)[None]
    with LayerRanges(model) as ranges:
        cache = RangeCache()
        ranges.run(tokens[:, :5], cache)
        ranges.run(torch.tensor([[30, 31]]), cache)
        cache.keep(5)
        again = ranges.run(tokens[:, 5:], cache, logits=0).logits
        fresh = RangeCache()
        ranges.run(tokens[:, :5], fresh)
        assert torch.equal(again, ranges.run(tokens[:, 5:], fresh, logits=0).logits)


def test_rows_that_move_to_the_right_keep_their_tokens_in_order():
    cache = RangeCache()
    states = torch.arange(2 * 5.0).view(2, 1, 5, 1)
    cache.update(states, states, 0)
    cache.keep(4, torch.tensor([0, 2]))
    kept = cache.layers[0].keys[:, 0, :, 0].tolist()
    assert kept[0] == [0, 1, 2, 3]
    assert kept[1][2:] == [5, 6]


def test_the_model_has_its_own_layers_again_even_after_an_error():
    model = model_of("llama")
    before = [id(layer) for layer in model.model.layers]
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ZeroDivisionError), LayerRanges(model):
        raise ZeroDivisionError
    assert [id(layer) for layer in model.model.layers] == before
    assert [name for name, _ in model.named_parameters()] == names


def test_layers_with_a_recurrent_state_are_refused_by_name():
    model = model_of("llama")
    model.config.layer_types = ["linear_attention", "full_attention"] * 2
    with pytest.raises(WeightopsError, match="layers of the kind linear_attention keep a state"):
        LayerRanges(model)


def test_layers_that_share_keys_are_refused():
    model = model_of("llama")
    model.config.num_kv_shared_layers = 2
    with pytest.raises(WeightopsError, match="use the keys and values of lower ones"):
        LayerRanges(model)


def test_a_model_without_a_stack_is_refused_with_what_was_looked_for():
    model = model_of("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(WeightopsError, match=r"no single stack of layers \(looked for names such as model.layers.0."):
        LayerRanges(model)
