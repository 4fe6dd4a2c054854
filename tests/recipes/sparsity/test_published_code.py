"""``compat`` against numbers that the authors' code gave; the file says from which commit, and on what problem."""

import json
import math
from pathlib import Path

import pytest
import torch

from weightops.recipes.sparsity.entry_optimizer import EntryOptimizer, EntrySelection
from weightops.recipes.sparsity.entry_rules import EntryAdam, EntrySm3
from weightops.recipes.sparsity.regrowth import Regrowth
from weightops.recipes.sparsity.sparse_linear import SparseLinear

PUBLISHED = json.loads((Path(__file__).parent / "spiel_published.json").read_text())
SIZES, SETTINGS = (12, 10, 4), PUBLISHED["settings"]


def wave(*shape, step, scale=1.0):
    return torch.tensor([scale * math.sin(step * (i + 1)) for i in range(math.prod(shape))]).reshape(shape)


def model(run):
    """Two layers and an optimizer that begins where the published run began."""
    layers = {}
    for i, entries in enumerate(SETTINGS["entries"]):
        dense = torch.nn.Linear(SIZES[i], SIZES[i + 1], bias=False)
        dense.weight.data = wave(SIZES[i + 1], SIZES[i], step=0.7 + 0.2 * i + 0.01 * run["twist"], scale=0.5)
        layers[f"layer {i}"] = SparseLinear(dense, entries)
    regrowth = Regrowth(SETTINGS["every"], SETTINGS["phase"], SETTINGS["share"], run["falls"], SETTINGS["steps"], True)
    rule = EntrySm3(run["weight_decay"]) if run["by"] == "ma" else EntryAdam(run["weight_decay"], ageless=True)
    optimizer = EntryOptimizer(layers, rule, EntrySelection(run["by"], regrowth), SETTINGS["lr"])
    for layer, start in zip(layers.values(), run["start"], strict=True):
        layer.place(torch.tensor(start))
    first, second = layers.values()
    return torch.nn.Sequential(first, torch.nn.Tanh(), second), [first, second], optimizer


@pytest.mark.parametrize("run", PUBLISHED["runs"], ids=lambda run: f"{run['by']}-{run['falls']}-{run['accumulate']}")
def test_compat_chooses_the_entries_of_the_published_code_and_learns_its_values(run):
    network, layers, optimizer = model(run)
    exchanges = {each["step"]: each["layers"] for each in run["exchanges"]}
    assert len(exchanges) == 6
    for step in range(1, SETTINGS["steps"] + 1):
        for part in range(run["accumulate"]):
            n = step * run["accumulate"] + part
            inputs, outputs = wave(8, 12, step=0.31 + 0.013 * n), wave(8, 4, step=0.17 + 0.007 * n)
            ((network(inputs) - outputs) ** 2).mean().div(run["accumulate"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in exchanges:
            assert [layer.positions.flat.tolist() for layer in layers] == exchanges[step], step
    for layer, final in zip(layers, run["final"], strict=True):
        assert layer.positions.flat.tolist() == final["positions"]
        assert layer.learned.tolist() == pytest.approx(final["learned"], abs=3e-6)
