"""A checkpoint of fewer layers: some layers of a model, with its embeddings, final norm and head.

Source: Sorted LLaMA (SoFT), arXiv 2309.08968, where the first layers of a model that was trained for it are a model of
their own. What is cut is a checkpoint like any other: lazy, and to be added to, merged and saved.

>>> import weightops as wo
>>> wo.extract("base", layers=1)
<Checkpoint: base, layers 0 of 2, 12 tensors>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..anatomy.layer_cut import cut_layers
from ..errors import WeightopsError, at
from ..io.adapter import Adapter
from ..io.opened import AddOn
from ..io.sparse_delta import SparseDelta
from ..io.weights import KeptLayers, Weights
from .changes import Change, Difference
from .checkpoint import Checkpoint, Delta
from .opening import as_checkpoint
from .rules import AlgebraError, Rule


def extract(model: str | Path | Checkpoint, layers: int | Sequence[int]) -> Checkpoint:
    """Keep some layers of a model, numbered anew, and everything outside its layers; lazy until it is saved.

    Every entry of ``config.json`` that belongs to a layer goes with it.

    Args:
        model: A checkpoint, or what :func:`weightops.open` opens.
        layers: How many of the first layers to keep, or the numbers of the layers, counted from 0 and rising.

    Raises:
        WeightopsError: the model cannot be cut, or not to these layers.
    """
    if not isinstance(model, str | Path | Checkpoint):
        raise AlgebraError(
            f"cannot extract layers of a {type(model).__name__}; extract them from each model first, or save it"
        )
    checkpoint = as_checkpoint(model)
    source = checkpoint.source
    if not source.config:
        raise WeightopsError(f"{source.spec}: has no config.json, which says how many layers it has; name its folder")
    try:
        cut = cut_layers(source.tensors, source.config, layers)
    except WeightopsError as error:
        raise WeightopsError(*(at(source.spec, problem) for problem in error.problems)) from error
    earlier = source.kept.numbers if source.kept else range(cut.of)
    numbers = tuple(earlier[layer] for layer in (range(layers) if isinstance(layers, int) else layers))
    kept = KeptLayers(numbers, source.kept.of if source.kept else cut.of, cut.notes)
    changes = [_cut_change(change, cut.names, kept) for change in checkpoint.delta.changes]
    return Checkpoint(
        replace(_cut_weights(source, cut.names, kept), config=cut.config),
        Delta(tuple(change for change in changes if change is not None)),
    )


def _cut_weights(weights: Weights, names: Mapping[str, str], kept: KeptLayers) -> Weights:
    tensors = {new: weights.tensors[old] for new, old in names.items() if old in weights.tensors}
    return replace(weights, tensors=tensors, kept=kept)


def _cut_change(change: Change, names: Mapping[str, str], kept: KeptLayers) -> Change | None:
    """A change of the tensors that are kept; ``None`` if it changed only others."""
    of: Difference | AddOn
    if isinstance(change.of, Adapter):
        updates, replaced = change.of.updates, change.of.replaced
        of = replace(
            change.of,
            updates={new: updates[old] for new, old in names.items() if old in updates},
            replaced={new: replaced[old] for new, old in names.items() if old in replaced},
        )
    elif isinstance(change.of, SparseDelta):
        entries, base = change.of.tensors, change.of.base
        kept_entries = {new: entries[old] for new, old in names.items() if old in entries}
        of = replace(change.of, tensors=kept_entries, base=base and _cut_weights(base, names, kept))
    else:
        of = Difference(_cut_weights(change.of.minuend, names, kept), _cut_weights(change.of.subtrahend, names, kept))
    cut = replace(change, of=of, rules=tuple(_renamed(rule, names) for rule in change.rules))
    return cut if cut.names() or not change.names() else None


def _renamed(rule: Rule, names: Mapping[str, str]) -> Rule:
    """A rule that treats each tensor as it was treated under its name in the whole model."""
    if all(new == old for new, old in names.items()):
        return rule

    def factor(name: str) -> float:
        return rule.factor(names.get(name, name))

    factor.__qualname__ = f"{rule.kind}({rule.shown})"
    return Rule("scaled", factor)
