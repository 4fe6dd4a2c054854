import math

import pytest
import torch
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.recipes.objectives.label_decision import LabelDecision
from weightops.recipes.objectives.next_token import NextToken


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_chat_model(tmp_path_factory.mktemp("chat")), "float32")[0].eval()


class Even:
    def __call__(self, input_ids, **_):
        return type("Out", (), {"logits": torch.zeros(*input_ids.shape, 40)})


ROWS = [{"input_ids": [5, 6, 7, 8, 9], "answer": 1}, {"input_ids": [10, 11], "answer": 0}]


@pytest.mark.parametrize("over_vocabulary", [True, False])
def test_a_label_decision_is_the_cross_entropy_at_the_last_position_whatever_the_padding(model, over_vocabulary):
    objective = LabelDecision((20, 30), 2, over_vocabulary)
    expected, right = 0.0, 0
    for row in ROWS:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, -1].double()
        among = logits if over_vocabulary else logits[[20, 30]]
        expected += (among.logsumexp(0) - logits[(20, 30)[row["answer"]]]).item()
        right += int((logits[30] > logits[20]).item() == row["answer"])
    batch = objective.batch(ROWS)
    assert objective.loss(model, batch).item() == pytest.approx(expected, abs=1e-4)
    assert objective.items(batch) == 2
    assert objective.metrics(model, batch) == {"accuracy": right}


def test_only_the_last_logits_are_asked_for(model):
    calls = []

    def spy(**inputs):
        calls.append(inputs["logits_to_keep"])
        return model(**inputs)

    objective = LabelDecision((20, 30))
    objective.loss(spy, objective.batch(ROWS))
    assert calls == [1]


def test_an_even_guess_costs_ln_2_a_row():
    objective = LabelDecision((3, 4))
    assert objective.loss(Even(), objective.batch(ROWS)).item() == pytest.approx(2 * math.log(2))


def test_next_token_is_the_cross_entropy_of_every_next_token_whatever_the_padding(model):
    rows = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}]
    expected = 0.0
    for ids in ([5, 6, 7, 8], [9, 10]):
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected -= sum(log_probabilities[place, ids[place + 1]].item() for place in range(len(ids) - 1))
    objective = NextToken(pad=3)
    batch = objective.batch(rows)
    assert objective.items(batch) == 4
    assert objective.loss(model, batch).item() == pytest.approx(expected, abs=1e-4)


def test_tokens_that_are_not_trained_cost_nothing(model):
    objective = NextToken()
    batch = objective.batch([{"input_ids": [5, 6, 7], "trained": [False, False, True]}])
    log_probabilities = model(torch.tensor([[5, 6, 7]])).logits[0].double().log_softmax(-1)
    assert objective.items(batch) == 1
    assert objective.loss(model, batch).item() == pytest.approx(-log_probabilities[1, 7].item(), abs=1e-4)
