"""Early exits: the loss is the naive one at every exit, whatever is chunked, cut short, drawn or dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_architectures as architectures
import torch
from merge_files import quiet
from safetensors.torch import load_file
from tiny_chat import write_chat_model

from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.recipes.floor.checking import check
from weightops.recipes.floor.chunked_loss import chunked_loss
from weightops.recipes.floor.exit_layers import find_exits
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trainer import fit, measure
from weightops.recipes.objectives import exits as exits_module
from weightops.recipes.objectives.exits import Exits, depths
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.updates.lora import Lora

ROWS = [
    {"input_ids": [5, 9, 3, 7, 30, 12, 8, 21, 4], "trained": [False] * 3 + [True] * 6},
    {"input_ids": [11, 6, 2, 17], "trained": [False, False, True, True]},
    {"input_ids": [8, 8, 30, 31, 32, 33, 34]},
]
FAMILIES = ("llama", "gemma2", "granite", "gpt2")


class Tokens:
    """All that an objective asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = 2


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A new copy of a tiny model of four layers."""
    folders = {}

    def make(family="llama"):
        with quiet():
            if family not in folders:
                (folders[family],) = architectures.save(tmp_path_factory.mktemp(family), family, [0])
            return architectures.load(folders[family], family)[0].float()

    return make


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def ready(model, **settings):
    return Exits(**settings).ready(model, Tokens(), ROWS)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def states_of(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)


def naive(model, batch, exits, weights):
    """Each exit's cross entropy, from transformers' own hidden states and a full table of logits."""
    parts, output, total = find_exits(model), states_of(model, batch), 0.0
    for depth, weight in zip(exits, weights, strict=True):
        last = depth == len(parts.layers)
        logits = output.logits if last else parts.logits(parts.norm(output.hidden_states[depth]))
        total = total + weight * torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100, reduction="sum"
        )
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_one_exit_at_the_last_layer_is_plain_fine_tuning(model_of, family):
    model = model_of(family).eval()  # gpt2 has dropout of its own
    exits, plain = ready(model, exits=(4,)), NextToken(0)
    batch = plain.batch(ROWS)
    one, other = exits.loss(model, batch), plain.loss(model, batch)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert_close(gradients(model, one), gradients(model, other))


@pytest.mark.parametrize(("family", "chunk"), [(family, 4) for family in FAMILIES] + [("llama", 512)])
def test_several_exits_cost_the_mean_of_what_each_costs(model_of, family, chunk, monkeypatch):
    monkeypatch.setattr(exits_module, "CHUNK", chunk)
    model = model_of(family).eval()  # gpt2 has dropout of its own
    objective = ready(model, exits=(1, 3, 4))
    batch = objective.batch(ROWS)
    one, other = objective.loss(model, batch), naive(model, batch, (1, 3, 4), [1 / 3] * 3)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert_close(gradients(model, one), gradients(model, other))


def test_the_exit_of_a_step_is_drawn_by_seed_and_step_and_each_has_its_turn(model_of):
    objective = ready(model_of(), exits=4, each_step="drawn", seed=3)
    drawn = []
    for step in range(200):
        objective.begin_step(step)
        drawn += objective.learned()
    assert len(drawn) == 200
    assert all(30 < drawn.count(depth) < 70 for depth in (1, 2, 3, 4))
    resumed = ready(model_of(), exits=4, each_step="drawn", seed=3)
    resumed.begin_step(117)
    assert resumed.learned() == resumed.learned() == (drawn[117],)


def test_an_exit_moves_nothing_above_it(model_of):
    model = model_of().train()
    objective = ready(model, exits=(2,))
    moved = gradients(model, objective.loss(model, objective.batch(ROWS)))
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"0", "1"}
    assert len(find_exits(model).layers) == 4


def test_exits_in_turn_with_the_weights_of_layerskip(model_of):
    """e(l) by hand for L = 4 and e_scale = 0.5: 0.5 (0 + 1) = 0.5, 0.5 (0 + 1 + 2) = 1.5, 3 + 0.5 (0 + 1 + 2) = 4.5."""
    model = model_of().train()
    objective = ready(model, exits=(2, 3, 4), each_step="in_turn", weights="deeper", growth=0.5)
    batch, expected = objective.batch(ROWS), {(2, 4): [0.1, 0.9], (3, 4): [0.25, 0.75]}
    for step, (exits, weights) in enumerate([*expected.items()] * 2):
        objective.begin_step(step)
        assert objective.learned() == exits
        torch.testing.assert_close(objective.loss(model, batch), naive(model, batch, exits, weights))
    with torch.no_grad():
        every = naive(model, batch, (2, 3, 4), [0.5 / 6.5, 1.5 / 6.5, 4.5 / 6.5])
        torch.testing.assert_close(objective.loss(model, batch), every)


def test_earlier_exits_learn_what_the_last_one_predicts(model_of):
    model = model_of().train()
    batch = NextToken(0).batch(ROWS)
    parts, present, output = find_exits(model), batch["targets"] != -100, states_of(model, batch)
    teacher = output.logits[present].detach().log_softmax(-1)
    learner = parts.logits(parts.norm(output.hidden_states[2][present])).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(learner, teacher, log_target=True, reduction="sum")
    token = torch.nn.functional.nll_loss(learner, batch["targets"][present], reduction="sum")
    expected = (0.3 * token + 0.7 * divergence + NextToken(0).loss(model, batch)) / 2
    one = ready(model, exits=(2, 4), distill=0.7).loss(model, batch)
    torch.testing.assert_close(one, expected)
    assert_close(gradients(model, one), gradients(model, expected))


def test_rows_skip_layers_in_training_and_never_on_rows_held_out(model_of):
    model, plain = model_of(), model_of()
    objective, undropped = ready(model, exits=(1, 4), layer_dropout=0.99), ready(plain, exits=(1, 4))
    assert measure(model, ROWS, objective, 2) == measure(plain, ROWS, undropped, 2)
    batch = objective.batch(ROWS)
    model.train()
    assert len({float(objective.loss(model, batch).detach()) for _ in range(8)}) > 1
    with find_exits(plain).leaving([1]) as expected, find_exits(model).leaving([1]) as states:
        plain(batch["input_ids"])
        model.train()(batch["input_ids"])
    assert torch.equal(states[1], expected[1])  # the first layer is never skipped


def test_each_exit_is_measured_on_rows_held_out(model_of):
    model = model_of("gemma2")
    measured = measure(model, ROWS, ready(model, exits=(1, 4)), 2)
    assert measured["loss"] == pytest.approx((measured["loss_at_1"] + measured["loss_at_4"]) / 2, rel=1e-5)
    assert measured["loss_at_4"] == pytest.approx(measure(model, ROWS, NextToken(0), 2)["loss"], rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 9])
def test_a_chunked_loss_has_the_gradient_of_the_whole_one(chunk):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 3, generator=draw, requires_grad=True)
    weight = torch.randn(5, 3, generator=draw, requires_grad=True)
    frozen = torch.randn(5, generator=draw, requires_grad=True)
    targets = torch.arange(7) % 5

    def loss_of(states, tokens):
        scores = (states @ weight.T + frozen.detach()).log_softmax(-1)
        return -scores.gather(-1, tokens.expand(2, -1)[..., None]).sum()

    whole, loss = loss_of(hidden, targets), chunked_loss(hidden, targets, loss_of, [weight], chunk)
    torch.testing.assert_close(loss, whole)
    for one, other in zip(*(torch.autograd.grad(3 * each, [hidden, weight]) for each in (loss, whole)), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(hidden, targets, loss_of, [weight], chunk), whole.detach())


def training(**changed):
    return Training(**{"lr": 5e-3, "epochs": 3, "batch": 2, "precision": "fp32", "save_dtype": "float32", **changed})


def test_training_does_not_depend_on_how_a_step_is_split(chat_model, tmp_path):
    objective = Exits(exits=2, each_step="in_turn", weights="deeper", distill=0.2)
    done = [
        fit(*load(chat_model, "float32"), ROWS, objective, each, tmp_path / str(place), held_out=ROWS)
        for place, each in enumerate((training(), training(accumulate=2)))
    ]
    assert done[0].losses == pytest.approx(done[1].losses, rel=1e-4)
    one, other = (load_file(each.folder / "model.safetensors") for each in done)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    assert set(done[0].measured) == {"loss", "loss_at_1", "loss_at_2"}


def test_an_adapter_learns_exits_in_bf16_with_gradient_checkpointing(chat_model, tmp_path):
    settings = training(update=Lora(rank=4), precision="bf16", epochs=8, arguments={"gradient_checkpointing": True})
    done = fit(*load(chat_model, "float32"), ROWS, Exits(exits=2, layer_dropout=0.1), settings, tmp_path / "out")
    assert sum(done.losses[-3:]) < 0.9 * sum(done.losses[:3])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"exits": (3, 2)}, "exits: must rise"),
        ({"exits": 1, "each_step": "in_turn"}, "in_turn needs a last exit and at least one other"),
        ({"each_step": "drawn", "distill": 0.5}, "set distill to 0"),
    ],
)
def test_settings_that_do_not_go_together(settings, problem):
    with pytest.raises(WeightopsError, match=problem):
        check(Exits(**settings))


def test_exits_beyond_the_model_and_models_without_exits(model_of):
    assert depths(4, 30) == (8, 15, 22, 30)
    for exits, problem in (((2, 5), "exit 5 of a model with 4 layers"), (9, "9 exits of a model with 4 layers")):
        with pytest.raises(WeightopsError, match=problem):
            ready(model_of(), exits=exits)
    model = model_of()
    model.get_output_embeddings = lambda: torch.nn.Linear(16, 40)
    with pytest.raises(WeightopsError, match="its logits are not those of its final norm and head"):
        find_exits(model)


def test_what_training_fills_in_is_no_setting(model_of):
    assert replace(ready(model_of(), exits=4), exits=4, parts=None, step=None) == Exits()
