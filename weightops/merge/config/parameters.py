"""The value of a parameter for one tensor: which level speaks, which filter covers, where on the gradient.

Levels, nearest first: the input (model or slice source), the output slice, the module, the file, the method's default.
A level whose filters cover nothing passes the question on. What mergekit does, so that its files mean here what they
mean there; tested against its own resolver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import WeightopsError
from ...ops.registry import Operator
from ...ops.signature import Parameter
from .schema import Condition, Group, MergeConfig, Parameters


def value_at(condition: Condition, t: float | None, parameter: Parameter) -> Any:
    """A condition's value at a position: itself, or a point of its gradient (numbers between points are interpolated).

    Raises:
        WeightopsError: a point is not of the parameter's kind, or not in its range.
    """
    if not isinstance(condition.value, tuple):
        return parameter.read(condition.value)
    points = [parameter.read(point) for point in condition.value]
    place = (t or 0.0) * (len(points) - 1)
    below = int(place)
    if parameter.kind not in ("float", "int"):
        return points[below]
    share = place - below
    above = points[min(below + 1, len(points) - 1)]
    return parameter.read((1 - share) * float(points[below]) + share * float(above))


def levels(config: MergeConfig, group: Group, model: str | None = None) -> tuple[Parameters, ...]:
    """The ``parameters`` that hold in a group, nearest first; an input's own only when ``model`` names it."""
    found: list[Parameters] = []
    if model is not None:
        found += [source.parameters for source in group.inputs if source.model == model]
    if group.slice is not None:
        found.append(group.slice.parameters)
    if group.module is not None:
        found.append(group.module.parameters)
    return (*found, config.parameters)


def deciding(parameter: Parameter, where: Sequence[Parameters], name: str) -> Condition | None:
    """The condition that decides a parameter for a tensor, or ``None`` where the default holds."""
    settings = (level.settings[parameter.name] for level in where if parameter.name in level)
    covering = (condition for setting in settings for condition in setting if condition.covers(name))
    return next(covering, None)


@dataclass(frozen=True)
class Resolved:
    """A method's parameters for one output tensor, and the conditions they came from.

    Attributes:
        values: By parameter: a value, or a list with one for each input. Parameters nobody set are left out, so that
            the method's own default holds.
        conditions: What decided, for those who ask where a value comes from.
        missing: Parameters without a default that nobody set, each with the model it is missing for.
    """

    values: dict[str, Any]
    conditions: tuple[Condition, ...]
    missing: tuple[tuple[str, str | None], ...] = ()


def resolve(
    method: Operator, config: MergeConfig, group: Group, output: str, inputs: Sequence[tuple[str, str]], t: float | None
) -> Resolved:
    """Every parameter of a method for one output tensor.

    Args:
        method: The merge method.
        config: The document.
        group: The models or slice that the tensor is made in.
        output: The output tensor's name, which filters of global parameters are compared with.
        inputs: (model, tensor name) of each input in order; filters of per-model parameters are compared with the
            input's own name, which differs from the output's where layers move.
        t: Position in the layers, ``None`` outside them.

    Raises:
        WeightopsError: a value is not of its parameter's kind or not in its range; with file and line.
    """
    values: dict[str, Any] = {}
    used: list[Condition] = []
    missing: list[tuple[str, str | None]] = []
    for parameter in method.parameters:
        asked: list[tuple[str | None, str]] = list(inputs) if parameter.per_model else [(None, output)]
        found = [deciding(parameter, levels(config, group, model), name) for model, name in asked]
        used += [condition for condition in found if condition is not None]
        if parameter.required:
            missing += [(parameter.name, model) for (model, _), one in zip(asked, found, strict=True) if one is None]
        if any(condition is not None for condition in found):
            read = [_value_or_default(condition, t, parameter, config) for condition in found]
            values[parameter.name] = read if parameter.per_model else read[0]
    return Resolved(values, tuple(dict.fromkeys(used)), tuple(missing))


def settings_for(
    method: Operator, config: MergeConfig, group: Group, output: str, inputs: Sequence[tuple[str, str]], t: float | None
) -> dict[str, Any]:
    """The keyword arguments of a method for one output tensor; see :func:`resolve`.

    Raises:
        WeightopsError: a value of the wrong kind or range, or a parameter without default that nobody set.
    """
    resolved = resolve(method, config, group, output, inputs, t)
    if resolved.missing:
        raise WeightopsError(
            *(missing_setting(method, config, name, model, output) for name, model in resolved.missing)
        )
    return resolved.values


def missing_setting(method: Operator, config: MergeConfig, name: str, model: str | None, output: str) -> str:
    """The message for a parameter that has no default and that nobody set."""
    of = f" of {model}" if model else ""
    line = config.line_of("merge_method")
    return config.at(line, f"{method.name} needs {name!r}{of} (first missing for {output}); set it under parameters")


def _value_or_default(condition: Condition | None, t: float | None, parameter: Parameter, config: MergeConfig) -> Any:
    if condition is None:
        return None if parameter.required else parameter.default
    try:
        return value_at(condition, t, parameter)
    except WeightopsError as error:
        raise WeightopsError(*(config.at(condition.line, problem) for problem in error.problems)) from error
