"""Packed rows are the same training as unpacked ones, in fewer rows."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from weightops.errors import WeightopsError
from weightops.recipes.data.packing import pack, packed_batch
from weightops.recipes.objectives.next_token import NextToken

LENGTH = 16
examples = st.lists(
    st.lists(st.tuples(st.integers(1, 31), st.booleans()), min_size=1, max_size=LENGTH).map(
        lambda pairs: {"input_ids": [token for token, _ in pairs], "trained": [trained for _, trained in pairs]}
    ),
    min_size=1,
    max_size=12,
)


def unpacked(rows):
    for row in rows:
        segments = row["segments"]
        for number in dict.fromkeys(segments):
            at = [place for place, segment in enumerate(segments) if segment == number]
            yield [row["input_ids"][place] for place in at], [row["trained"][place] for place in at]


@given(examples)
def test_every_example_lies_whole_and_once_in_a_row_that_is_not_too_long(rows):
    packed = pack(rows, LENGTH)
    assert all(len(row["input_ids"]) == len(row["trained"]) == len(row["segments"]) <= LENGTH for row in packed)
    wanted = sorted((row["input_ids"], [False, *row["trained"][1:]]) for row in rows)
    assert sorted(unpacked(packed)) == wanted


@given(examples)
def test_no_two_packed_rows_would_fit_into_one(rows):
    """Best fit opens a row only for what fits nowhere, so at most one is half empty."""
    lengths = sorted(len(row["input_ids"]) for row in pack(rows, LENGTH))
    assert all(one + other > LENGTH for one, other in itertools.pairwise(lengths))


def test_an_example_goes_where_it_leaves_the_least_room():
    rows = [{"input_ids": [n] * n} for n in (6, 9, 4, 1, 7)]
    assert [row["input_ids"] for row in pack(rows, 10)] == [[6] * 6 + [4] * 4, [9] * 9 + [1], [7] * 7]
    with pytest.raises(WeightopsError, match="11 tokens does not fit into a row of 10"):
        pack([{"input_ids": [1] * 11}], 10)


def llama(attention):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def gpt2(attention):
    config = GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=LENGTH, attn_implementation=attention,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(config)


MODELS = {f"{make.__name__}-{attention}": make(attention) for make in (llama, gpt2) for attention in ("sdpa", "eager")}


def gradients(model, rows):
    objective = NextToken()
    model.zero_grad()
    batch = objective.batch(rows)
    loss = objective.loss(model, batch)
    loss.backward()
    return objective.items(batch), loss.item(), [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None)
@given(examples)
def test_packed_rows_have_the_loss_and_gradients_of_unpacked_rows(name, rows):
    rows = [*rows, {"input_ids": [1, 2, 3]}]  # something is learnt
    items, loss, slopes = gradients(MODELS[name], rows)
    packed_items, packed_loss, packed_slopes = gradients(MODELS[name], pack(rows, LENGTH))
    assert packed_items == items
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(slopes, packed_slopes, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_batch_may_hold_packed_rows_and_single_examples():
    rows = [{"input_ids": [5, 6, 7, 8, 9, 9], "segments": [0, 0, 1, 1, 1, 2]}, {"input_ids": [3, 4]}]
    batch = packed_batch(rows, pad=0)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 2, 3]]
    seen = batch["attention_mask"][:, 0] == 0
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert seen[1].int().tolist()[:2] == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert seen[1, 2:].int().tolist() == torch.eye(6).int()[2:].tolist()


def test_other_fields_of_examples_become_lists_that_segments_lead_into():
    rows = [{"input_ids": [1] * size, "weight": size} for size in (3, 2, 4)]
    for row in pack(rows, 5):
        assert [row["weight"][segment] for segment in row["segments"]] == [
            row["segments"].count(segment) for segment in row["segments"]
        ]
