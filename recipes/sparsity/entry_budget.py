"""Which layers of a model train some entries, and how many each.

As in SpIEL (arXiv 2401.16405, published code): a density of all the model's parameters gives a number of entries, which
the chosen layers share by size, so that they are all equally dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from weightops.errors import WeightopsError
from weightops.recipes.sparsity.sparse_linear import SparseLinear


def chosen_layers(model: Any, targets: tuple[str, ...], frozen: frozenset[str]) -> dict[str, torch.nn.Linear]:
    """The linear layers to train, by name: those whose names end so; without targets, all but the head.

    Args:
        targets: Ends of names of modules.
        frozen: Names of parameters that must not change.

    Raises:
        WeightopsError: a target matches no linear layer that may change, nothing is left to train, or another module
            uses the weight of a chosen layer.
    """
    head = model.get_output_embeddings()
    free = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" not in frozen and (targets or module is not head)
    }
    idle = [target for target in targets if not any(_ends(name, target) for name in free)]
    if idle:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in free})) or "none"
        where = "training.update.targets"
        raise WeightopsError(
            *(f"{where}: {t!r} matches no linear layer that is not frozen; these are {kinds}" for t in idle)
        )
    chosen = {n: module for n, module in free.items() if not targets or any(_ends(n, target) for target in targets)}
    if not chosen:
        raise WeightopsError("training.freeze: every linear layer is frozen, so nothing is left to train; freeze less")
    _check_tied(model, chosen)
    return chosen


def entries_by_layer(model: Any, layers: Mapping[str, torch.nn.Linear], density: float) -> dict[str, int]:
    """How many entries of each layer train: int(N * size / summed size) of N = int(density * parameters of the model).

    Raises:
        WeightopsError: the density leaves a layer without an entry, or asks for more than the layers have.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    summed, budget = sum(sizes.values()), int(density * parameters)
    if budget > summed:
        raise WeightopsError(
            f"training.update.density: {density:g} of {parameters:,} parameters are more than the {summed:,} of the "
            f"layers to train; choose at most {summed / parameters:.3g}"
        )
    counts = {name: budget * size // summed for name, size in sizes.items()}
    if empty := [name for name, count in counts.items() if not count]:
        needed = summed / min(sizes.values()) / parameters
        raise WeightopsError(
            f"training.update.density: {density:g} leaves {len(empty)} of {len(sizes)} layers without an entry to "
            f"train, {empty[0]} first; choose at least {needed:.2g}"
        )
    return counts


def replace_layers(model: Any, counts: Mapping[str, int]) -> dict[str, SparseLinear]:
    """Put sparse layers in the place of linear ones; everything else is frozen.

    Args:
        counts: Trained entries by the layer's name.
    """
    model.requires_grad_(False)
    replaced = {}
    for name, count in counts.items():
        replaced[name] = SparseLinear(model.get_submodule(name), count)
        model.set_submodule(name, replaced[name])
    return replaced


def sparse_layers(model: Any) -> dict[str, SparseLinear]:
    """The layers of a model with entries to train, by name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    return {name: layer for name, layer in layers.items() if len(layer.learned)}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _check_tied(model: Any, chosen: Mapping[str, torch.nn.Linear]) -> None:
    """Refuse a weight with several names: a change through one layer would change the others unseen."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {tuple(names[id(layer.weight)]) for layer in chosen.values() if len(names[id(layer.weight)]) > 1}
    if tied:
        raise WeightopsError(
            *(f"training.update.targets: {' and '.join(each)} are one weight; leave it out" for each in sorted(tied))
        )
