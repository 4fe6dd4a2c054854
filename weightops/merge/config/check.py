"""Checks a document against its merge method: inputs, base, and every parameter's name, kind and range."""

from __future__ import annotations

from ...errors import WeightopsError
from ...ops import registry
from ...ops.registry import Operator, nearest
from ...ops.signature import Parameter
from .merge_faults import MergeFaults
from .parameters import levels
from .schema import Condition, Group, InputModel, MergeConfig, Parameters

#: Parameters of mergekit's methods that have no effect here: how it stores a mask.
WITHOUT_EFFECT = frozenset(("int8_mask",))


def check(config: MergeConfig, faults: MergeFaults) -> None:
    """Add a document's problems to ``faults``, and what in it has no effect."""
    _check_tokenizer(config, faults)
    if not config.merge_method:
        return
    try:
        method = registry.find(config.merge_method)
    except WeightopsError as error:
        faults.add(config.line_of("merge_method"), error.problems[0])
        return
    for group in config.groups():
        _check_group(config, method, group, faults)
        _check_weights(config, method, group, faults)
    _check_parameters(config, method, faults)


def inputs_of(method: Operator, group: Group) -> tuple[InputModel, ...]:
    """The models that a method merges in a group, without the base if the method takes the base separately.

    A method that needs a base and takes plain ``models`` gets the base as the first model.
    """
    if not uses_base(method) or group.base is None:
        return group.inputs
    base = tuple(source for source in group.inputs if source.model == group.base)
    others = tuple(source for source in group.inputs if source.model != group.base)
    base_separate = method.takes == "deltas" or "base" in method.fills
    return others if base_separate else (*base, *others)


def uses_base(method: Operator) -> bool:
    """Whether the method uses the base model as a base; for other methods it is one more input, as in mergekit."""
    return method.needs_base or method.takes == "deltas" or "base" in method.fills


def _check_group(config: MergeConfig, method: Operator, group: Group, faults: MergeFaults) -> None:
    line = config.line_of_group(group)
    models = [source.model for source in group.inputs]
    for twice in sorted({model for model in models if models.count(model) > 1}):
        source = [source for source in group.inputs if source.model == twice][1]
        faults.add(source.line or line, f"model {twice!r} is listed twice; remove one entry")
    if method.needs_base and group.base is None:
        faults.add(config.line_of("merge_method"), f"{method.name} needs a base model; name it with base_model")
        return
    if uses_base(method) and group.base is not None and group.base not in models:
        faults.add(line, f"base model {group.base!r} is not among the slice's sources; add it with its layer_range")
        return
    _check_lengths(group, line, faults)
    _check_count(config, method, group, line, faults)
    _check_silent_base(config, method, group, faults)


def _check_lengths(group: Group, line: int, faults: MergeFaults) -> None:
    lengths = [s.layer_range[1] - s.layer_range[0] for s in group.sources if s.layer_range]
    if len(set(lengths)) > 1:
        ranges = ", ".join(f"{s.model} {list(s.layer_range)}" for s in group.sources if s.layer_range)
        faults.add(line, f"the sources of a slice must have the same number of layers: {ranges}")


def _check_count(config: MergeConfig, method: Operator, group: Group, line: int, faults: MergeFaults) -> None:
    least, most = method.models
    count = sum(source.model != group.base or not uses_base(method) for source in inputs_of(method, group))
    beside = " besides the base" if uses_base(method) and group.base else ""
    if not count and method.takes == "deltas":
        faults.note(line, f"there is no model besides the base, so {method.name} copies the base")
    elif count < least:
        faults.add(line, f"{method.name} merges at least {least} model{'s' * (least != 1)}{beside}; {count} given")
    if most is not None and count > most:
        faults.add(line, f"{method.name} merges at most {most} model{'s' * (most != 1)}{beside}; {count} given")


def _check_silent_base(config: MergeConfig, method: Operator, group: Group, faults: MergeFaults) -> None:
    """A method that does not use a base merges it as one more input; refuse that if its weight is not set."""
    if uses_base(method) or group.inputs == group.sources:
        return
    shared = [config.parameters] + ([group.module.parameters] if group.module else [])
    unset = [p.name for p in method.parameters if p.per_model and not any(p.name in level for level in shared)]
    if "weight" in unset:
        problem = f"{method.name} uses no base, so {group.base!r} would be one more input, and its weight is not set"
        faults.add(config.line_of("base_model"), f"{problem}; list it under models with a weight, or remove base_model")


def _check_weights(config: MergeConfig, method: Operator, group: Group, faults: MergeFaults) -> None:
    """Note the models whose weight is not set, or only for some tensors: mergekit refuses them, here it is 1."""
    weight = next((p for p in method.parameters if p.name == "weight" and p.per_model), None)
    if weight is None or weight.required:
        return
    unset: dict[str, list[str]] = {}
    for source in inputs_of(method, group):
        given = [c for level in levels(config, group, source.model) for c in level.settings.get("weight", ())]
        if not any(condition.covers_all for condition in given):
            where = "where no filter matches" if given else ""
            unset.setdefault(where, []).append(source.model)
    for where, models in unset.items():
        problem = f"the weight of {', '.join(models)} is not set"
        faults.ignored(config.line_of_group(group), f"{problem}; {where + ' ' if where else ''}it is {weight.default}")


# --- parameters ------------------------------------------------------------------------------------------------------


def _check_parameters(config: MergeConfig, method: Operator, faults: MergeFaults) -> None:
    shared = [config.parameters, *(module.parameters for module in config.modules.values())]
    shared += [group.slice.parameters for group in config.groups() if group.slice]
    for level in shared:
        _check_level(method, level, faults)
    for group in config.groups():
        merged = [source.model for source in inputs_of(method, group)]
        for source in group.sources:
            _check_level(method, source.parameters, faults, of_input=True, of_base=source.model not in merged)


def _check_level(
    method: Operator, level: Parameters, faults: MergeFaults, *, of_input: bool = False, of_base: bool = False
) -> None:
    """Check the parameters of one level.

    Args:
        of_input: They are written at one model.
        of_base: That model is the base, which the method does not weigh.
    """
    known = {parameter.name: parameter for parameter in method.parameters}
    elsewhere = WITHOUT_EFFECT.union(p.name for other in registry.methods() for p in other.parameters)
    for name, line in level.lines.items():
        parameter = known.get(name)
        if parameter is None and name in elsewhere:
            faults.ignored(line, f"{name!r} has no effect with {method.name}")
        elif parameter is None:
            hint = nearest(name, known) or f"; it takes {', '.join(known) or 'none'}"
            faults.ignored(line, f"unknown parameter {name!r} has no effect with {method.name}{hint}")
        elif of_input and not parameter.per_model:
            faults.ignored(line, f"{name!r} has no effect on one model: {method.name} has one value for all models")
        elif of_base:
            faults.ignored(line, f"{name!r} has no effect on the base: {method.name} reads it of the other models")
        else:
            for condition in level.settings.get(name, ()):
                _check_values(condition, parameter, faults)


def _check_values(condition: Condition, parameter: Parameter, faults: MergeFaults) -> None:
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    for value in values:
        try:
            parameter.read(value)
        except WeightopsError as error:
            faults.add(condition.line, error.problems[0])


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _check_tokenizer(config: MergeConfig, faults: MergeFaults) -> None:
    if config.tokenizer is None:
        return
    referenced = config.referenced_models()
    for token, source in config.tokenizer.tokens.items():
        if source.model is not None and source.model not in referenced:
            hint = nearest(source.model, referenced)
            faults.add(source.line, f"token {token!r} comes from {source.model!r}, which is not merged here{hint}")
