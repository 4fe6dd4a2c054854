"""A sparse layer over a weight in few bits trains as one over the numbers that these bits stand for."""

import weakref

import pytest
import torch
from fake_bitsandbytes import Params4bit, dequantize_4bit

from weightops.recipes.sparsity import four_bits
from weightops.recipes.sparsity.entry_optimizer import EntryOptimizer, EntrySelection
from weightops.recipes.sparsity.entry_rules import EntryAdam, EntrySm3
from weightops.recipes.sparsity.regrowth import Regrowth
from weightops.recipes.sparsity.sparse_linear import PackedSparseLinear, SparseLinear

ENTRIES, STEPS = 12, 14
SHAPES = ((10, 8), (4, 10))


def unpacked(weight):
    return dequantize_4bit(weight.data, weight.quant_state)


def dense_layers():
    torch.manual_seed(0)
    return [torch.nn.Linear(columns, rows) for rows, columns in SHAPES]


def packed(weight):
    return Params4bit(weight.detach()).to("cpu")


def packed_layer(linear, entries, unpack=unpacked):
    return PackedSparseLinear(linear, entries, packed(linear.weight), unpack)


def over_the_same_numbers(linear, entries):
    linear.weight.data = unpacked(packed(linear.weight))
    return SparseLinear(linear, entries)


def history(by, make):
    """Losses, gradients of the inputs, positions and learned values of every step."""
    layers = [make(linear, ENTRIES) for linear in dense_layers()]
    selection = EntrySelection(by, Regrowth(5, 3, 0.5, "linear", STEPS), rank=2)
    rule = EntrySm3() if by == "ma" else EntryAdam()
    optimizer = EntryOptimizer(dict(zip("ab", layers, strict=True)), rule, selection, 0.05, lambda line: None)
    network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    seen = []
    for number in range(STEPS):
        draw = torch.Generator().manual_seed(number)
        inputs = torch.randn(16, SHAPES[0][1], generator=draw, requires_grad=True)
        loss = (network(inputs) - torch.randn(16, SHAPES[1][0], generator=draw)).square().mean()
        loss.backward()
        seen += [loss.detach(), inputs.grad, *(layer.learned.grad.clone() for layer in layers)]
        optimizer.step()
        optimizer.zero_grad()
        seen += [tensor.clone() for each in layers for tensor in (each.positions.flat, each.learned.detach())]
    with torch.no_grad():
        seen.append(network(torch.ones(SHAPES[0][1])))
    return seen


@pytest.mark.parametrize("by", ["random", "gradient", "lift", "ag", "ma"])
def test_losses_and_gradients_are_exactly_those_over_the_unpacked_weights(by):
    seen, expected = history(by, packed_layer), history(by, over_the_same_numbers)
    assert len(seen) == len(expected)
    assert all(torch.equal(one, two) for one, two in zip(seen, expected, strict=True))


def test_the_packed_weight_never_changes_and_no_unpacked_one_outlives_its_pass():
    alive, together = [], []

    def unpack(weight):
        together.append(sum(each() is not None for each in alive))
        whole = unpacked(weight)
        alive.append(weakref.ref(whole))
        return whole

    layers = [packed_layer(linear, ENTRIES, unpack) for linear in dense_layers()]
    for layer in layers:
        layer.place(torch.arange(ENTRIES))
    codes = [layer.weight.detach().clone() for layer in layers]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
        loss = torch.nn.Sequential(*layers)(torch.randn(3, SHAPES[0][1], requires_grad=True)).square().sum()
    assert saved
    assert not {shape for each in SHAPES for shape in (each, each[::-1])} & set(saved)
    assert all(each() is None for each in alive)
    loss.backward()
    assert all(each() is None for each in alive)
    assert together == [0, 0, 0, 0]  # two forward, two backward; at each of them no other was alive
    for layer, before in zip(layers, codes, strict=True):
        layer.rewrite()
        layer.revert()
        assert torch.equal(layer.weight, before)


def test_a_layer_without_entries_is_frozen_and_keeps_nothing_unpacked_either():
    layer = packed_layer(dense_layers()[0], 0)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
        inputs = torch.randn(3, SHAPES[0][1], requires_grad=True)
        layer(inputs).sum().backward()
    assert saved == [(3, SHAPES[0][1])]
    assert torch.equal(inputs.grad, torch.ones(3, SHAPES[0][0]) @ unpacked(layer.weight))
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_bitsandbytes_weights_train_as_the_numbers_that_they_stand_for():
    pytest.importorskip("bitsandbytes")

    def over_bitsandbytes(linear, entries):
        return PackedSparseLinear(linear, entries, four_bits.packed(linear.weight), four_bits.unpacked)

    def over_its_numbers(linear, entries):
        linear.weight.data = four_bits.unpacked(four_bits.packed(linear.weight))
        return SparseLinear(linear, entries)

    seen, expected = history("ag", over_bitsandbytes), history("ag", over_its_numbers)
    assert all(torch.equal(one, two) for one, two in zip(seen, expected, strict=True))
    assert four_bits.packed(dense_layers()[0].weight).nbytes == 10 * 8 / 2
