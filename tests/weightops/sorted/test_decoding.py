"""What is written does not depend on how it is decoded, unless tokens are allowed to leave early."""

from __future__ import annotations

import pytest
import torch
from early_exits import PLAIN_STACKS, PROMPTS, Numbers, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.sorted.decoding import ConfidentExits, Plain, SelfSpeculative, generate, head_in_layers
from weightops.sorted.sampling import Sampling


def written(model, prompts, method, **settings):
    return generate(model, Numbers(), prompts, method, **{"most": 24, **settings})


@pytest.mark.parametrize("family", PLAIN_STACKS)
def test_a_batch_writes_what_transformers_writes_row_by_row(family):
    model = model_of(family)
    alone = [
        model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=2)[0, len(prompt) :]
        for prompt in PROMPTS
    ]
    expected = [row.tolist() for row in alone]
    assert written(model, PROMPTS, Plain()).tokens == expected
    assert written(model, PROMPTS, SelfSpeculative((2,), 3)).tokens == expected
    assert written(model, PROMPTS, SelfSpeculative()).tokens == expected


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 50), exit_layer=st.integers(1, 3), draft=st.integers(1, 7), most=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)  # fmt: skip
def test_drafts_of_any_length_from_any_exit_change_nothing(seed, exit_layer, draft, most, lengths):
    model = model_of("llama", seed)
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, 40, (length,), generator=draw).tolist() for length in lengths]
    plain = written(model, prompts, Plain(), most=most)
    drafted = written(model, prompts, SelfSpeculative((exit_layer,), draft), most=most)
    assert drafted.tokens == plain.tokens
    assert sum(drafted.counts.exits.values()) == sum(map(len, plain.tokens))


def test_a_draft_that_is_always_right_saves_passes():
    model = model_of("llama")
    for layer in model.model.layers[2:]:  # layers that add nothing: the exit after two is the whole model
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    done = written(model, PROMPTS[:1], SelfSpeculative((2,), 3), most=21)
    assert done.counts.acceptance == 1
    assert done.counts.passes == 5  # the first token is the prompt's, then four tokens a pass
    assert dict(done.counts.exits) == {2: 15, 4: 6}


def test_the_best_exit_is_found_while_decoding():
    model = model_of("llama", 3)
    for layer in model.model.layers[2:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    done = written(model, PROMPTS[:1], SelfSpeculative((1, 2, 3)), most=40)
    assert set(done.counts.exits) == {2, 4}  # the lowest of the exits that are always right
    assert done.counts.acceptance == 1


def test_rows_end_at_their_end_token_and_the_others_go_on():
    model = model_of("qwen3_moe")
    long = written(model, PROMPTS, Plain()).tokens
    model.generation_config.eos_token_id = long[0][4]
    done = written(model, PROMPTS, SelfSpeculative((2,), 3))
    assert done.tokens[0] == long[0][: long[0].index(long[0][4]) + 1]
    for row, whole in zip(done.tokens, long, strict=True):
        assert whole[: len(row)] == row
        assert len(row) == 24 or row[-1] == long[0][4]


def test_an_exit_that_must_be_certain_is_never_taken():
    model = model_of("gemma3")
    assert written(model, PROMPTS, ConfidentExits({1: 1.0, 2: 1.0})).tokens == written(model, PROMPTS, Plain()).tokens


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_tokens_that_left_early_leave_later_ones_the_cache_of_the_whole_model(family):
    """Each token that the last layer chose is the one that the whole model chooses after the same tokens."""
    model = model_of(family, 5)
    model.get_output_embeddings().weight.data *= 3
    (tokens,), counts = (
        (done := written(model, PROMPTS[:1], ConfidentExits({1: 0.25, 3: 0.4}), most=30)).tokens,
        done.counts,
    )
    assert counts.exits[1]
    assert counts.exits[4] > 1
    whole = model(torch.tensor([[*PROMPTS[0], *tokens]])).logits[0, len(PROMPTS[0]) - 1 : -1].argmax(-1).tolist()
    assert sum(mine == theirs for mine, theirs in zip(tokens, whole, strict=True)) >= counts.exits[4]


@pytest.mark.slow
def test_drafts_do_not_change_the_distribution_of_samples():
    """Chi-square over the pairs of second and third token, 4,000 samples each way; a wrong rule is found (below)."""
    assert _distance(Sampling(0.9)) < 2 * 1.6
    assert _distance(Sampling(1.3, top_k=6, top_p=0.9)) < 2 * 1.6
    assert _distance(Sampling(0.9), vocabulary=12) < 2 * 1.6


def _distance(sampling: Sampling, vocabulary: int = 0) -> float:
    """Chi-square statistic of two samples over its degrees of freedom, about 1 if they are of one distribution."""
    model = model_of("llama", 1)
    model.lm_head.weight.data *= 4
    tables = []
    for way, seed in ((Plain(), 1), (SelfSpeculative((1,), 2, vocabulary=vocabulary), 2)):
        rows = [PROMPTS[0]] * 4000
        drawn = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed)
        tokens = torch.tensor(
            [row[1] * 40 + row[2] for row in written(model, rows, way, most=3, sampling=drawn).tokens if len(row) == 3]
        )
        tables.append(torch.bincount(tokens, minlength=1600).double())
    one, two = tables
    seen = one + two >= 10
    scale = (two.sum() / one.sum()).sqrt()
    return float((((one * scale - two / scale) ** 2) / (one + two))[seen].sum() / (seen.sum() - 1))


def test_the_same_seed_writes_the_same_again():
    model = model_of("llama")
    one, two = (
        written(model, PROMPTS, SelfSpeculative((2,), 3), sampling=Sampling(1.0, seed=7)).tokens for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (SelfSpeculative((0,)), "exit 0: the model has 4 layers; exits are from 1 to 3"),
        (SelfSpeculative((4,), 2), "exit 4: the model has 4 layers"),
        (SelfSpeculative((1, 2), 2), "a draft of fixed length needs one exit"),
        (SelfSpeculative((2,), 0), "a draft has at least 1 token"),
        (ConfidentExits({}), "no exits"),
        (ConfidentExits({4: 0.5}), "exit 4: the model has 4 layers"),
        (ConfidentExits({2: 1.5}), "its threshold is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_bad_exits_are_refused(method, says):
    with pytest.raises(WeightopsError, match=says):
        written(model_of("llama"), PROMPTS, method)


@pytest.mark.parametrize(("prompts", "says"), [([], "a prompt is empty"), ([[5], []], "a prompt is empty")])
def test_empty_prompts_are_refused(prompts, says):
    with pytest.raises(WeightopsError, match=says):
        written(model_of("llama"), prompts, Plain())


def test_more_than_the_context_holds_is_refused_before_anything_is_written():
    with pytest.raises(
        WeightopsError, match="the longest prompt has 5 tokens, and 60 more would pass the model's context of 64"
    ):
        written(model_of("llama"), PROMPTS[:1], Plain(), most=60)


def test_the_head_is_weighed_in_layers():
    model = model_of("llama")
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert head_in_layers(model, 4) == pytest.approx(40 * 16 / layer, rel=0.01)
