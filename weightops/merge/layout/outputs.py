"""Lays out the output of a document: each tensor, the tensors it is merged from, and how.

This module opens no file and lists no architectures. Tensor names tell the layers
(:mod:`weightops.anatomy.layers`), and each tensor's position follows mergekit's rules (:mod:`.placing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...anatomy.groups import embedding_of, is_buffer, is_head
from ...anatomy.layers import layer_of
from ...errors import WeightopsError
from ...io.faults import Faults
from ...ops import registry
from ...ops.registry import Operator
from ..config.check import inputs_of, uses_base
from ..config.parameters import Resolved, missing_setting, resolve
from ..config.schema import Condition, Group, MergeConfig
from .placing import LayerSource, ModelTensors, Part, Spot, parts, place, reference_model, source_layers

__all__ = ["LayerSource", "Layout", "ModelTensors", "OutputTensor", "Source", "lay_out"]


@dataclass(frozen=True)
class Source:
    """A tensor of a model."""

    model: str
    tensor: str


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write.

    Attributes:
        name: Its name in the output.
        inputs: The tensors that the method merges, in order.
        base: The base model's tensor, for methods that have a base.
        t: Position in the layers of its slice, ``None`` outside the layers.
        layer: Its layer in the output, of ``layers`` in its stack.
        method: Name of the merge method.
        settings: Keyword arguments of the method; for others the method's default applies.
    """

    name: str
    inputs: tuple[Source, ...]
    base: Source | None
    t: float | None
    layer: int | None
    layers: int
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Every tensor of an output.

    Attributes:
        reference: The model whose config, files and tensor names the output follows: the base, else the first.
        source_layers: For each text layer of the output, where its entries in the config come from;
            see :func:`weightops.anatomy.layers_config.relayer_config`.
        notes: What the user should know although it is not a fault.
    """

    reference: str
    tensors: tuple[OutputTensor, ...]
    source_layers: tuple[LayerSource, ...]
    notes: tuple[str, ...] = ()


def lay_out(config: MergeConfig, models: Mapping[str, ModelTensors]) -> Layout:
    """Lay out the output of one document.

    Args:
        config: The document, as :func:`weightops.merge.config.reading.load` returned it.
        models: Each of ``config.referenced_models()`` with its tensor names.

    Raises:
        WeightopsError: every problem of the layout, with file and line: layers that a model does not have, tensors
            missing in an input, gradients that cover no layer, parameters without a value.
    """
    faults = Faults(config.where)
    divided = parts(config, models, faults)
    method = registry.find(config.merge_method)
    spots = [spot for part in divided for spot in place(part, config, models, faults)]
    _check_extra(spots, config, models, faults)
    named = _named(spots, config, models, faults)
    resolved = _resolved(named, method, config, faults)
    _check_gradients(resolved, faults)
    faults.raise_any()
    tensors = tuple(_output(spot, method, settings) for spot, settings in resolved)
    return Layout(reference_model(config), tensors, _text_layers(divided, config), _notes(config, models, spots))


def _text_layers(divided: Sequence[Part], config: MergeConfig) -> tuple[LayerSource, ...]:
    return next((layers for part in divided if (layers := source_layers(part, config))), ())


# --- names -----------------------------------------------------------------------------------------------------------


def _named(
    spots: Sequence[Spot], config: MergeConfig, models: Mapping[str, ModelTensors], faults: Faults
) -> list[tuple[Spot, dict[str, str]]]:
    """Each spot with the tensor of each input that it reads; one fault for each input that lacks tensors."""
    complete: list[tuple[Spot, dict[str, str]]] = []
    lacking: dict[tuple[str, int], list[str]] = {}
    for spot in spots:
        read = {model: _find(models[model], name) for model, name in spot.names.items()}
        for model, name in read.items():
            if name is None and spot.group is not None:
                lacking.setdefault((model, config.line_of_group(spot.group)), []).append(spot.names[model])
        if None not in read.values():
            complete.append((spot, {model: name for model, name in read.items() if name is not None}))
    for (model, line), names in lacking.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        faults.add(line, f"{model} has no tensor {names[0]}{others}; the inputs must share one architecture")
    return complete


def _find(known: ModelTensors, name: str) -> str | None:
    """The model's tensor of that name; for the head of a model that ties it, the embedding."""
    if name in known.shapes:
        return name
    return embedding_of(known.shapes) if known.tied and is_head(name) else None


def _check_extra(
    spots: Sequence[Spot], config: MergeConfig, models: Mapping[str, ModelTensors], faults: Faults
) -> None:
    """Add a fault if only some inputs have a weight of a merged layer; it would be lost silently."""
    merged: dict[tuple[int, str], set[str]] = {}  # for each (line of the group, model), the tensors that are read
    for spot in spots:
        line = config.line_of_group(spot.group) if spot.group is not None else 0
        for model, name in spot.names.items() if spot.group is not None else ():
            merged.setdefault((line, model), set()).add(name)
    for (line, model), names in merged.items():
        layers = {(place.stack, place.index) for name in names if (place := layer_of(name))}
        for name in models[model].shapes:
            place = layer_of(name)
            if place and (place.stack, place.index) in layers and name not in names and not is_buffer(name):
                faults.add(
                    line, f"{model} has {name}, which the other inputs do not have; they must share one architecture"
                )
                break


# --- settings --------------------------------------------------------------------------------------------------------

_Named = tuple[Spot, dict[str, str]]
_Settled = tuple[_Named, Resolved | None]


def _resolved(named: Sequence[_Named], method: Operator, config: MergeConfig, faults: Faults) -> list[_Settled]:
    """Each spot with its method's parameters; ``None`` for a copied tensor."""
    settled: list[_Settled] = []
    missing: dict[tuple[str, str | None], str] = {}
    problems: dict[str, None] = {}
    for spot, names in named:
        if spot.group is None:
            settled.append(((spot, names), None))
            continue
        # filters are matched with the head's name, even if an input's embedding replaces its head
        named_inputs = [(source.model, spot.names[source.model]) for source in inputs_of(method, spot.group)]
        try:
            resolved = resolve(method, config, spot.group, spot.name, named_inputs, spot.t)
        except WeightopsError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        settled.append(((spot, names), resolved))
        for parameter in resolved.missing:
            missing.setdefault(parameter, spot.name)
    problems.update(dict.fromkeys(missing_setting(method, config, *key, name) for key, name in missing.items()))
    if problems:
        raise WeightopsError(*faults.problems(), *problems)
    return settled


def _check_gradients(settled: Sequence[_Settled], faults: Faults) -> None:
    """Add a fault for each gradient whose filter matches only tensors outside the layers; it would have no effect.

    A gradient that covers both is allowed: outside the layers its first point applies, as in mergekit.
    """
    outside: dict[Condition, str] = {}
    inside: set[Condition] = set()
    layered = any(spot.t is not None for (spot, _), _ in settled)
    for (spot, _), resolved in settled:
        for condition in resolved.conditions if resolved is not None else ():
            if spot.t is None:
                outside.setdefault(condition, spot.name)
            else:
                inside.add(condition)
    for condition, name in outside.items():
        chosen = condition.filter is not None or not layered
        if isinstance(condition.value, tuple) and len(condition.value) > 1 and chosen and condition not in inside:
            problem = f"a list of {len(condition.value)} values over the layers applies only to tensors outside them"
            faults.add(condition.line, f"{problem} (first: {name}); give one value")


def _output(named: _Named, method: Operator, resolved: Resolved | None) -> OutputTensor:
    spot, names = named
    if spot.group is None or resolved is None:
        copied = tuple(Source(model, name) for model, name in names.items())
        return OutputTensor(spot.name, copied, None, spot.t, spot.layer, spot.layers, "passthrough")
    inputs = tuple(Source(source.model, names[source.model]) for source in inputs_of(method, spot.group))
    base = _base(method, spot.group, names)
    if base is not None and not inputs:  # nothing is added to the base
        return OutputTensor(spot.name, (base,), None, spot.t, spot.layer, spot.layers, "passthrough")
    return OutputTensor(spot.name, inputs, base, spot.t, spot.layer, spot.layers, method.name, resolved.values)


def _base(method: Operator, group: Group, names: Mapping[str, str]) -> Source | None:
    if group.base is None or not uses_base(method):
        return None
    return Source(group.base, names[group.base])


# --- notes -----------------------------------------------------------------------------------------------------------


def _notes(config: MergeConfig, models: Mapping[str, ModelTensors], spots: Sequence[Spot]) -> tuple[str, ...]:
    reference = reference_model(config)
    notes = list(config.notes)
    copied = sum(spot.group is None for spot in spots)
    if copied:
        notes.append(f"{copied} tensors belong to no listed module and are copied from {reference}")
    read = {model: {spot.names[model] for spot in spots if model in spot.names} for model in models}
    for model, known in models.items():
        ours = models[reference].shapes
        unused = [
            name for name in known.shapes if name not in read[model] and name not in ours and layer_of(name) is None
        ]
        if unused and read[model] and model != reference:
            tied = models[reference].tied and all(is_head(name) for name in unused)
            reason = "ties its head" if tied else "does not have them"
            notes.append(
                f"{model}: left out, because {reference} {reason}: {', '.join(unused[:5])}{' ...' * (len(unused) > 5)}"
            )
    return (*notes, *_idle_filters(config, spots))


def _idle_filters(config: MergeConfig, spots: Sequence[Spot]) -> Iterator[str]:
    """Notes on filters that match no tensor's name; they are most likely typing errors."""
    names = {name for spot in spots for name in (spot.name, *spot.names.values())}
    levels = [config.parameters, *(module.parameters for module in config.modules.values())]
    levels += [group.slice.parameters for group in config.groups() if group.slice]
    levels += [source.parameters for group in config.groups() for source in group.sources]
    conditions = dict.fromkeys(c for level in levels for setting in level.settings.values() for c in setting)
    for condition in conditions:
        if not any(condition.covers(name) for name in names):
            yield config.at(condition.line, f"filter {condition.filter!r} matches no tensor's name")
