"""The gradient of every objective, found by its name, against central finite differences in float64.

A weight that an objective holds constant has no gradient, so differences of the loss cannot give its gradient.
For these, ``HELD`` has the function whose gradient the papers say it is, and differences are taken of that one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from token_rows import Table, Tokens, right_logits

from weightops.recipes.floor.components import component, kinds
from weightops.recipes.floor.objective import ROW_INDEX
from weightops.recipes.objectives.exits import Exits

VOCABULARY = 7
STEP = 1e-5

#: Rows with every field that an objective reads.
ROWS = [
    {"input_ids": [5, 1, 3, 6, 2, 4], "trained": [False] * 2 + [True] * 4, "marked": [0, 0, 1, 0, 1, 1],
     "token_weights": [1.0, 1.0, 2.5, 1.0, 2.5, 1.0], "answer": 1, ROW_INDEX: 0,
     "negatives": [{"input_ids": [5, 1, 4, 4], "trained": [False] * 2 + [True] * 2},
                   {"input_ids": [5, 1, 0, 6, 2], "trained": [False] * 2 + [True] * 3}]},
    {"input_ids": [2, 6, 1], "trained": [False, True, True], "marked": [0, 1, 0], "token_weights": [1.0, 1.0, 1.5],
     "answer": 0, ROW_INDEX: 1,
     "negatives": [{"input_ids": [2, 3], "trained": [False, True]},
                   {"input_ids": [2, 0, 0], "trained": [False, True, True]}]},
]  # fmt: skip

#: Further settings of some objectives; the defaults of all are tested.
SETTINGS = [
    ("probability_family", {"power": 0}),
    ("probability_family", {"power": 2.5}),
    ("probability_family", {"power": 0, "keep": "above", "threshold": 0.1}),
    ("probability_family", {"power": 1, "keep": "below", "threshold": 0.1}),
    ("one_token_rollout", {"draws": 5, "temperature": 0.7, "beta": 0.3, "mean": "rows"}),
    ("one_token_rollout", {"exact": True}),
    ("fault_aware", {"emphasis": 3.0, "weight": "doubtful"}),
    ("discriminative_tuning", {"score": "mean", "temperature": 0.3, "rate": 0.9}),
    ("label_decision", {"over_vocabulary": True}),
    ("exits", {"exits": 2, "weights": "deeper", "growth": 0.5}),
    ("exits", {"exits": 2, "distill": 0.4}),
]


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    """Objectives compute in fp32, which is too coarse for differences: here their fp32 is float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def two_layers():
    """A model with exits, and the weights that differences are taken by: of its head, and of a norm below both exits.

    GPT-2's norms compute in the dtype of the model, others' in fp32.
    """
    import transformers

    torch.manual_seed(0)
    keys = {"vocab_size": VOCABULARY, "n_embd": 4, "n_layer": 2, "n_head": 1, "n_positions": 8}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**keys, tie_word_embeddings=False)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model, [model.lm_head.weight, model.transformer.h[0].ln_1.weight]


def log_probabilities(model, rows):
    logits, tokens = right_logits(model, rows)
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def minus_p(objective, model):
    """Dynamic fine-tuning: the gradient of -p."""
    return lambda: -log_probabilities(model, ROWS).exp().sum()


def doubtful(objective, model):
    """A weight of 1 + (e - 1)(1 - p) on log p: the gradient of -e log p + (e - 1) p."""
    marked = torch.tensor([mark for row in ROWS for mark, on in zip(row["marked"], row["trained"], strict=True) if on])
    more = (objective.emphasis - 1) * marked

    def value():
        log_probability = log_probabilities(model, ROWS)
        return (-(1 + more) * log_probability + more * log_probability.exp()).sum()

    return value


def rewards(objective, model):
    """-sum of q R log p with the q of the start: card 10 (e), -[(1 - beta) q_g (e_g - p) + beta (q - p)]."""
    start, tokens = right_logits(model, ROWS)
    q = (start.detach() / objective.temperature).softmax(-1)
    rewarded = q * torch.full_like(q, objective.beta).scatter(1, tokens[:, None], 1.0)
    return lambda: -(rewarded * right_logits(model, ROWS)[0].log_softmax(-1)).sum()


def average(objective, model):
    """-s(y) + tau / rate log((1 - rate) + rate mean exp d): its gradient weighs a negative by exp(d) / u."""

    def score(row):
        return getattr(log_probabilities(model, [row]), objective.score)()

    def exponents(row, reference):
        scores = torch.stack([score(negative) for negative in row["negatives"]])
        return scores / objective.temperature - (reference if objective.score == "sum" else 0)

    start = [torch.stack([score(negative) for negative in row["negatives"]]).detach() for row in ROWS]

    def value():
        total = -sum(score(row) for row in ROWS)
        for row, reference in zip(ROWS, start, strict=True):
            u = 1 - objective.rate + objective.rate * exponents(row, reference).exp().mean()
            total = total + objective.temperature / objective.rate * u.log()
        return total

    return value


def distilled(objective, model):
    """The earlier exit's divergence from the last exit's prediction, as that was at the start."""
    batch = objective.batch(ROWS)
    present, inputs = batch["targets"] != -100, {name: batch[name] for name in ("input_ids", "attention_mask")}

    def logs():
        output = model(**inputs, output_hidden_states=True)
        early = model.lm_head(model.transformer.ln_f(output.hidden_states[1]))
        return [logits[present].log_softmax(-1) for logits in (early, output.logits)]

    teacher, tokens = logs()[1].detach(), batch["targets"][present][:, None]

    def value():
        early, last = logs()
        divergence = (teacher.exp() * (teacher - early)).sum()
        words = [-log.gather(1, tokens).sum() for log in (early, last)]
        return ((1 - objective.distill) * words[0] + objective.distill * divergence + words[1]) / 2

    return value


#: Of objectives that hold weights constant: where they do, and the function whose gradient theirs is.
HELD = {
    "dynamic_tuning": (lambda objective: True, minus_p),
    "fault_aware": (lambda objective: objective.weight == "doubtful", doubtful),
    "one_token_rollout": (lambda objective: objective.exact, rewards),
    "discriminative_tuning": (lambda objective: True, average),
    "exits": (lambda objective: objective.distill > 0, distilled),
}


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in kinds("objectives")), *SETTINGS], ids=lambda each: str(each)
)
def test_the_gradient_equals_central_differences(name, settings):
    made = component("objectives", name)(**({"exits": 2} | settings if name == "exits" else settings))
    assert set(made.reads) <= ROWS[0].keys(), f"give ROWS the fields that {name} reads"
    table = Table(VOCABULARY, dtype=torch.float64)
    model, weights = two_layers() if isinstance(made, Exits) else (table, [table.table])
    objective = made.ready(model, Tokens(), ROWS)
    batch, state = objective.batch(ROWS), copy.deepcopy(dict(objective.state()))

    def loss():
        for kept, tensor in objective.state().items():
            tensor.copy_(state[kept])
        return objective.loss(model, batch)

    gradients = torch.autograd.grad(loss(), weights)
    is_held, function = HELD.get(name, (lambda objective: False, None))
    value = function(objective, model) if is_held(objective) else loss
    for gradient, weight in zip(gradients, weights, strict=True):
        torch.testing.assert_close(gradient, differences(value, weight), rtol=1e-6, atol=1e-8)


def differences(value, weight):
    """(f(x + h) - f(x - h)) / 2h for each entry of a weight."""
    gradient = torch.zeros_like(weight)
    entries = weight.data.view(-1)
    for place, entry in enumerate(entries.tolist()):
        ends = []
        for moved in (entry + STEP, entry - STEP):
            entries[place] = moved
            ends.append(float(value().detach()))
        entries[place] = entry
        gradient.view(-1)[place] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient
