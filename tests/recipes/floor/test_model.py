"""What of a model is frozen, by parts and by expressions."""

import pytest
import torch
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.anatomy.groups import group_of
from weightops.errors import WeightopsError
from weightops.recipes.floor.model import ROWS, frozen_names, prepare
from weightops.recipes.floor.settings import PARTS, VOCABULARY_AND_NORMS, Training, freezing
from weightops.recipes.updates.lora import Lora


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def model(chat_model):
    return load(chat_model, "float32")[0]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_what_inspect_calls_so_and_a_tied_head_is_the_embedding(chat_model, part):
    names = frozen_names(model(chat_model), (part,))
    tied = {"lm_head.weight", "model.embed_tokens.weight"}
    assert names
    assert names == tied if part in ("head", "embedding") else {group_of(name) for name in names} == {part}


def test_nothing_is_frozen_by_default_and_a_routines_choice_yields_to_the_users(chat_model):
    made = prepare(model(chat_model), Training())
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert freezing(Training(), VOCABULARY_AND_NORMS).freeze == VOCABULARY_AND_NORMS
    assert freezing(Training(freeze=()), VOCABULARY_AND_NORMS).freeze == ()


def test_what_a_guard_freezes_is_what_the_expression_of_earlier_versions_froze(chat_model):
    import re

    names = dict(model(chat_model).named_parameters(remove_duplicate=False))
    before = {name for name in names if re.search(r"embed|lm_head|norm|wte|wpe|ln_", name)}
    assert frozen_names(model(chat_model), VOCABULARY_AND_NORMS) == before


def test_an_expression_that_matches_nothing_is_refused_with_the_part_it_may_mean(chat_model):
    with pytest.raises(WeightopsError) as error:
        frozen_names(model(chat_model), (r"layers\.0\.", "norms", "xyz"))
    assert error.value.problems == (
        "training.freeze: 'norms' matches no parameter of the model (did you mean norm?)",
        "training.freeze: 'xyz' matches no parameter of the model (parts are embedding, head, norm, attention, mlp)",
    )


def test_rows_that_train_move_alone_where_their_parameter_is_frozen(chat_model):
    made = model(chat_model)
    embedding = made.get_input_embeddings().weight
    setattr(embedding, ROWS, (3, 5))
    made = prepare(made, Training(freeze=VOCABULARY_AND_NORMS))
    made(torch.tensor([[3, 4, 5, 6]])).logits.square().sum().backward()
    assert sorted(set(embedding.grad.nonzero()[:, 0].tolist())) == [3, 5]


def test_linear_layers_that_are_frozen_get_no_adapter(chat_model):
    made = prepare(model(chat_model), Training(update=Lora(2), freeze=("mlp", r"layers\.0\..*q_proj", "head")))
    places = {name.split(".lora_")[0] for name, each in made.named_parameters() if each.requires_grad}
    assert {place.rpartition(".")[2] for place in places} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not any("layers.0" in place and "q_proj" in place for place in places)
    assert any("layers.1" in place and "q_proj" in place for place in places)
