"""The position of every output tensor, and its name in each input. No merge methods here.

mergekit's rules: in an output slice of n layers, t goes from 0 to 1 (a single layer has t = 1); tensors before the
layers are merged from the inputs of the first slice, tensors after them from the inputs of the last slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...anatomy.groups import before_layers
from ...anatomy.layers import kind_of, layer_of, main_stack, module_names, stacks
from ...io.faults import Faults
from ...ops.registry import nearest
from ..config.schema import Group, InputModel, MergeConfig


@dataclass(frozen=True)
class ModelTensors:
    """What the layout needs to know about a model.

    Attributes:
        shapes: Tensor name to shape.
        layers: ``num_hidden_layers`` of its (text) config, if known.
        tied: Whether its config ties the head to the embedding.
    """

    shapes: Mapping[str, tuple[int, ...]]
    layers: int | None = None
    tied: bool = False


@dataclass(frozen=True)
class Spot:
    """An output tensor whose merge method and settings are not known yet.

    Attributes:
        group: The inputs it is merged from; ``None`` for a tensor copied from the reference model.
        names: Its name in each input.
        t: Position in the layers of its slice, ``None`` outside the layers.
        layer: Its layer in the output, of ``layers`` in its stack.
    """

    name: str
    group: Group | None
    names: Mapping[str, str]
    t: float | None = None
    layer: int | None = None
    layers: int = 0


@dataclass(frozen=True)
class LayerSource:
    """The layer that an output layer's entries in the config come from."""

    model: str
    layer: int


@dataclass(frozen=True)
class Stack:
    """The layers of a model that ``layer_range`` refers to."""

    prefix: str
    length: int


@dataclass(frozen=True)
class Part:
    """A model, or one module of it: the reference model's tensors in it, its groups, and each input's layers."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    stacks: Mapping[str, Stack | None]

    @property
    def lengths(self) -> dict[str, int]:
        """The number of layers in each stack of the part, including stacks that are not sliced."""
        return stacks(self.names)


def reference_model(config: MergeConfig) -> str:
    """The model whose config, files and tensor names the output follows: the base, else the first."""
    return config.referenced_models()[0]


def parts(config: MergeConfig, models: Mapping[str, ModelTensors], faults: Faults) -> list[Part]:
    """The model as one part; or a part for each module, and one without groups for tensors of no listed module."""
    reference = reference_model(config)
    names = models[reference].shapes
    if not config.modules:
        return [_part(names, tuple(config.groups()), config, models)]
    shares = module_names(config.modules, names)
    for key, module in config.modules.items():
        if not shares[key]:
            hint = nearest(key, {word for name in names for word in name.split(".")[:-1]})
            faults.add(module.line, f"module {key!r} matches no tensor of {reference}{hint}")
    groups = tuple(config.groups())
    return [
        _part(share, tuple(group for group in groups if group.module_name == key), config, models)
        for key, share in shares.items()
        if share
    ]


def _part(
    names: Iterable[str], groups: tuple[Group, ...], config: MergeConfig, models: Mapping[str, ModelTensors]
) -> Part:
    names = tuple(names)
    users = dict.fromkeys([reference_model(config), *(source.model for group in groups for source in group.inputs)])
    kinds = {kind_of(name) for name in names}
    sliced: dict[str, Stack | None] = {}
    for model in users:
        known = models[model]
        tensors = names if model == reference_model(config) else [n for n in known.shapes if kind_of(n) in kinds]
        sliced[model] = _stack(tensors, known.layers)
    return Part(names, groups, sliced)


def _stack(names: Sequence[str], layers: int | None) -> Stack | None:
    prefix = main_stack(names, layers)
    if prefix is None:
        return None
    length = stacks(names)[prefix]
    # a block after num_hidden_layers predicts further tokens; it does not count as a layer
    return Stack(prefix, min(length, layers or length) if kind_of(prefix) == "text" else length)


def place(part: Part, config: MergeConfig, models: Mapping[str, ModelTensors], faults: Faults) -> list[Spot]:
    """Every output tensor of a part. Layers that an input does not have are added to ``faults``."""
    if not part.groups:
        reference = reference_model(config)
        return [Spot(name, None, {reference: name}) for name in part.names]
    if _is_whole(part, config):
        return list(_by_name(part, faults, config))
    return list(_restacked(part, config, models)) if _can_restack(part, config, faults) else []


def source_layers(part: Part, config: MergeConfig) -> tuple[LayerSource, ...]:
    """For each layer of a part's output, where its entries in the config come from; empty without layers."""
    stack = part.stacks[reference_model(config)]
    if stack is None or kind_of(stack.prefix) != "text":
        return ()
    if not part.groups or _is_whole(part, config):
        return tuple(LayerSource(reference_model(config), layer) for layer in range(stack.length))
    leads = [next(s for s in group.inputs if s.model == lead_of(group)) for group in part.groups]
    return tuple(LayerSource(lead.model, layer) for lead in leads for layer in range(*_span(lead, part)))


def lead_of(group: Group) -> str:
    """The input whose layers give the weights' names and the config entries: the base, else the first."""
    models = [source.model for source in group.inputs]
    return group.base if group.base is not None and group.base in models else models[0]


# --- models merged name by name --------------------------------------------------------------------------------------


def _is_whole(part: Part, config: MergeConfig) -> bool:
    """Whether there is one group and it takes every layer of each input; then tensors are matched by name."""
    inputs = part.groups[0].inputs
    spans = [(source.layer_range, _length(part, source.model)) for source in inputs]
    if len(part.groups) > 1 or any(span is not None and span != (0, length) for span, length in spans):
        return False
    # a base that only gives its config may have another number of layers
    return inputs[0].layer_range is None or _length(part, reference_model(config)) == spans[0][1]


def _by_name(part: Part, faults: Faults, config: MergeConfig) -> Iterator[Spot]:
    group = part.groups[0]
    depths = {source.model: _length(part, source.model) for source in group.inputs}
    if len(set(depths.values())) > 1:
        counts = ", ".join(f"{model} has {depth}" for model, depth in depths.items())
        faults.add(config.line_of_group(group), f"the inputs must have the same number of layers: {counts}")
        return
    lengths = part.lengths
    for name in part.names:
        yield _unmoved(name, group, lengths)


def _length(part: Part, model: str) -> int:
    stack = part.stacks[model]
    return stack.length if stack else 0


def _unmoved(name: str, group: Group, lengths: Mapping[str, int]) -> Spot:
    """A tensor that keeps its name, with its position in its own stack if it has one."""
    names = {source.model: name for source in group.inputs}
    layer = layer_of(name)
    if layer is None:
        return Spot(name, group, names)
    count = max(lengths[layer.stack], layer.index + 1)
    return Spot(name, group, names, position(layer.index, count), layer.index, count)


def position(step: int, count: int) -> float:
    """mergekit's t of one layer of a slice.

    >>> [position(step, 3) for step in range(3)], position(0, 1)
    ([0.0, 0.5, 1.0], 1.0)
    """
    return step / (count - 1) if count > 1 else 1.0


# --- slices ----------------------------------------------------------------------------------------------------------


def _can_restack(part: Part, config: MergeConfig, faults: Faults) -> bool:
    problems = [_wrong_range(source, group, part, config) for group in part.groups for source in group.inputs]
    problems.append(_wrong_part(part, config))
    for problem in problems:
        if problem is not None:
            faults.add(*problem)
    return not any(problems)


def _wrong_range(source: InputModel, group: Group, part: Part, config: MergeConfig) -> tuple[int, str] | None:
    line, stack = source.line or config.line_of_group(group), part.stacks[source.model]
    if stack is None:
        return line, f"{source.model} has no single stack of layers to slice; name its parts under modules"
    if source.layer_range and source.layer_range[1] > stack.length:
        problem = f"{source.model} has {stack.length} layers"
        return line, f"{problem}; layer_range {list(source.layer_range)} goes beyond them"
    return None


def _wrong_part(part: Part, config: MergeConfig) -> tuple[int, str] | None:
    stack, line = part.stacks[reference_model(config)], config.line_of_group(part.groups[0])
    if stack is None:
        return None  # reported for each source
    if kind_of(stack.prefix) != "text":
        return line, f"only text layers can be restacked, and {stack.prefix[:-1]} is not text"
    for name in part.names:
        layer = layer_of(name)
        beyond = layer is not None and layer.stack == stack.prefix and layer.index >= stack.length
        if beyond or kind_of(name) == "draft":
            problem = f"{name} belongs to a block that predicts further tokens and only fits the original layers"
            return line, f"{problem}; merge the model without slices, or remove the block first"
    return None


def _restacked(part: Part, config: MergeConfig, models: Mapping[str, ModelTensors]) -> Iterator[Spot]:
    stack = part.stacks[reference_model(config)]
    assert stack is not None
    outside = [name for name in part.names if (layer := layer_of(name)) is None or layer.stack != stack.prefix]
    lengths = stacks(outside)
    yield from (_unmoved(name, part.groups[0], lengths) for name in outside if before_layers(name))
    yield from _layers(stack.prefix, part, models)
    yield from (_unmoved(name, part.groups[-1], lengths) for name in outside if not before_layers(name))


def _layers(prefix: str, part: Part, models: Mapping[str, ModelTensors]) -> Iterator[Spot]:
    counts = [_span(group.inputs[0], part)[1] - _span(group.inputs[0], part)[0] for group in part.groups]
    out = 0
    for group, count in zip(part.groups, counts, strict=True):
        for step in range(count):
            at = {source.model: _prefix(source, step, part) for source in group.inputs}
            lead = lead_of(group)
            for rest in (name.removeprefix(at[lead]) for name in models[lead].shapes if name.startswith(at[lead])):
                names = {model: before + rest for model, before in at.items()}
                yield Spot(f"{prefix}{out}.{rest}", group, names, position(step, count), out, sum(counts))
            out += 1


def _span(source: InputModel, part: Part) -> tuple[int, int]:
    return source.layer_range or (0, _length(part, source.model))


def _prefix(source: InputModel, step: int, part: Part) -> str:
    stack = part.stacks[source.model]
    assert stack is not None
    return f"{stack.prefix}{_span(source, part)[0] + step}."
