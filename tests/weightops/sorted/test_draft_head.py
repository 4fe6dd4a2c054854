"""A smaller head for drafts gives the model's own logits for its tokens, and never changes what is written."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from early_exits import PROMPTS, Numbers, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.sorted.decoding import Plain, SelfSpeculative, generate
from weightops.sorted.draft_head import draft_head, gives_logits_of
from weightops.sorted.layer_ranges import LayerRanges, RangeCache
from weightops.sorted.sampling import Chooser, Sampling
from weightops.sorted.speculative import SelfSpeculativeRun
from weightops.sorted.written_rows import Prompt, WrittenRows


@settings(max_examples=20, deadline=None)
@given(
    frequent=st.integers(1, 20), bias=st.booleans(),
    added=st.lists(st.lists(st.integers(0, 39), max_size=5), max_size=3),
)  # fmt: skip
@torch.inference_mode()
def test_tokens_that_it_holds_have_the_logits_of_the_whole_head(frequent, bias, added):
    model = model_of("llama")
    model.lm_head = torch.nn.Linear(16, 40, bias=bias)
    head = draft_head(model, frequent)
    for tokens in added:
        head.add(tokens)
    hidden = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(frequent))
    whole, held = model.lm_head(hidden), sorted({*range(frequent), *chain(*added)})
    scores = head.logits(hidden)
    torch.testing.assert_close(scores[..., held], whole[..., held])
    assert set((scores > float("-inf")).all(0).all(0).nonzero().flatten().tolist()) == set(held)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
def test_what_is_written_does_not_depend_on_the_vocabulary_of_drafts(family):
    model = model_of(family)
    expected = generate(model, Numbers(), PROMPTS, Plain(), most=24).tokens
    for vocabulary in (3, 20):
        for method in (SelfSpeculative((2,), 3, vocabulary=vocabulary), SelfSpeculative(vocabulary=vocabulary)):
            assert generate(model, Numbers(), PROMPTS, method, most=24).tokens == expected


def test_drafts_hold_the_tokens_of_the_text():
    """A model whose exit is the whole model drafts rightly, but for tokens new to the text: each ends one draft."""
    model = model_of("llama")
    for layer in model.model.layers[2:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    done = generate(model, Numbers(), PROMPTS[:1], SelfSpeculative((2,), 3, vocabulary=1), most=30)
    new = set(done.tokens[0]) - set(PROMPTS[0])
    assert done.tokens == generate(model, Numbers(), PROMPTS[:1], Plain(), most=30).tokens
    assert done.counts.passes <= 29 / 4 + len(new) + 1 < 29


@pytest.mark.parametrize(("family", "kept"), [("llama", True), ("granite", False)])
@torch.inference_mode()
def test_a_head_whose_logits_are_scaled_is_used_whole(family, kept):
    model = model_of(family)
    model.config.logits_scaling = 4.0
    head, whole = draft_head(model, 10), RangeCache()
    tokens = torch.tensor(PROMPTS[:1])
    with LayerRanges(model) as ranges:
        out = ranges.run(tokens, whole)
        assert gives_logits_of(ranges.read_out(out.states[4][:, -1:], head), out.logits) == kept
        written = WrittenRows(1, 4, ())
        run = SelfSpeculativeRun(
            ranges, Prompt(tokens, None), written, Chooser(Sampling(), tokens.device),
            SelfSpeculative((2,), 2).policy(4, 1.0, 1.0), head,
        )  # fmt: skip
        run.finish()
        assert (run._head is not None) == kept


def test_a_small_vocabulary_and_a_head_that_is_not_one_matrix_are_used_whole():
    model = model_of("llama")
    assert draft_head(model, 0) is None
    assert draft_head(model, 21) is None
    assert draft_head(model, 20).vocabulary == 40
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert draft_head(model, 10) is None


def test_a_vocabulary_below_nothing_is_refused():
    with pytest.raises(WeightopsError, match="the vocabulary of drafts is -1"):
        generate(model_of("llama"), Numbers(), PROMPTS, SelfSpeculative(vocabulary=-1), most=4)
