import copy

import pytest
import torch

from weightops.recipes.sparsity.entry_optimizer import EntryOptimizer, EntrySelection
from weightops.recipes.sparsity.entry_rules import EntryAdam, EntrySm3
from weightops.recipes.sparsity.regrowth import Regrowth
from weightops.recipes.sparsity.sparse_linear import SparseLinear

EVERY, PHASE, STEPS, ENTRIES = 5, 3, 20, 6


def build(by, told=None, compat=False):
    torch.manual_seed(0)
    dense = [torch.nn.Linear(8, 6, bias=False), torch.nn.Linear(6, 4, bias=False)]
    layers = [SparseLinear(each, ENTRIES) for each in dense]
    rule = EntrySm3() if by == "ma" else EntryAdam()
    selection = EntrySelection(by, Regrowth(EVERY, PHASE, 0.5, "linear", STEPS, compat), rank=2)
    tell = (lambda line: None) if told is None else told.append
    optimizer = EntryOptimizer({"a": layers[0], "b": layers[1]}, rule, selection, 0.05, tell)
    return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1]), layers, optimizer


def step(network, optimizer, number, spoil=None):
    draw = torch.Generator().manual_seed(number)
    inputs, outputs = torch.randn(16, 8, generator=draw), torch.randn(16, 4, generator=draw)
    loss = ((network(inputs) - outputs) ** 2).mean()
    loss.backward()
    if spoil is not None:
        spoil()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def where(layers):
    return [layer.positions.flat.tolist() for layer in layers]


@pytest.mark.parametrize("by", ["random", "gradient", "lift", "ag", "ma"])
def test_every_selection_trains_and_only_ag_and_ma_exchange_entries(by):
    network, layers, optimizer = build(by)
    weights = [layer.weight.detach().clone() for layer in layers]
    losses, places = [], []
    for _ in range(STEPS):
        losses.append(step(network, optimizer, 0))
        places.append(where(layers))
    assert losses[-1] < 0.95 * losses[0]
    changed = [number + 1 for number in range(1, STEPS) if places[number] != places[number - 1]]
    assert set(changed) <= {8, 13, 18}
    assert bool(changed) == (by in ("ag", "ma"))
    for layer, before in zip(layers, weights, strict=True):
        assert layer.positions.flat.unique().numel() == ENTRIES
        assert torch.equal(layer.positions.flat.sort().values, layer.positions.flat)
        moved = (layer.weight != before).reshape(-1).nonzero().reshape(-1)
        assert set(moved.tolist()) <= set(layer.positions.flat.tolist())


def test_the_first_gradient_chooses_the_entries_before_anything_moves():
    for by in ("gradient", "ag"):
        network, layers, optimizer = build(by)
        draw = torch.Generator().manual_seed(1)
        inputs, outputs = torch.randn(16, 8, generator=draw), torch.randn(16, 4, generator=draw)
        for layer in layers:
            layer.weight.requires_grad_()
        whole = torch.autograd.grad(
            ((torch.tanh(inputs @ layers[0].weight.T) @ layers[1].weight.T - outputs) ** 2).mean(),
            [layer.weight for layer in layers],
        )
        for layer in layers:
            layer.weight.requires_grad_(False)
        step(network, optimizer, 1)
        expected = [gradient.abs().reshape(-1).topk(ENTRIES).indices.sort().values.tolist() for gradient in whole]
        assert where(layers) == expected
        assert all((layer.learned != 0).all() for layer in layers)  # the first step counts


def test_under_sm3_rows_that_were_never_trained_can_grow_and_in_the_published_code_they_cannot():
    network, layers, optimizer = build("ma")
    step(network, optimizer, 1)
    assert (optimizer.sites[0].state["rows"] > 0).all()
    network, layers, optimizer = build("ma", compat=True)
    step(network, optimizer, 1)
    rows = set((layers[0].positions.flat // 8).tolist())
    never = [row for row in range(6) if row not in rows]
    assert never
    assert not optimizer.sites[0].state["rows"][never].any()


@pytest.mark.parametrize("by", ["gradient", "ag", "ma"])
@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 11])
def test_a_saved_state_continues_bit_for_bit_also_within_a_phase(by, stop, tmp_path):
    network, layers, optimizer = build(by)
    for number in range(1, STEPS + 1):
        if number == stop + 1:
            torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        step(network, optimizer, number)
    again, their_layers, theirs = build(by)
    theirs.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in range(stop + 1, STEPS + 1):
        step(again, theirs, number)
    for one, two in zip(layers, their_layers, strict=True):
        assert torch.equal(one.positions.flat, two.positions.flat)
        assert torch.equal(one.learned, two.learned)
        assert torch.equal(one.weight, two.weight)


def test_a_step_with_a_gradient_that_is_not_a_number_changes_nothing_and_says_so():
    told = []
    network, layers, optimizer = build("ag", told)
    step(network, optimizer, 1)
    before = copy.deepcopy([layer.weight for layer in layers])

    def spoil():
        layers[0].learned.grad[2] = float("nan")

    step(network, optimizer, 2, spoil)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    assert told == ["step 2 is left out: its gradient is not a number"]


def test_a_phase_with_a_gradient_that_is_not_a_number_is_skipped_and_the_next_is_not():
    told = []
    network, layers, optimizer = build("ag", told)
    places = []
    for number in range(1, 14):
        if number == 7:  # one token of the layer's inputs is spoilt, in the backward pass only
            hook = layers[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * float("inf") * 0,))
        step(network, optimizer, number)
        if number == 7:
            hook.remove()
        places.append(where(layers))
    assert places[6] == places[7]
    assert places[11] != places[12]
    assert told == [
        "step 7 is left out: its gradient is not a number",
        "no entries are exchanged after step 8: a gradient before it is not a number",
    ]


def test_a_first_gradient_that_is_not_a_number_chooses_nothing():
    network, layers, optimizer = build("ag", [])
    drawn = where(layers)
    network(torch.full((3, 8), float("nan"))).sum().backward()
    assert where(layers) == drawn
    optimizer.step()
    optimizer.zero_grad()
    step(network, optimizer, 2)
    assert where(layers) != drawn
