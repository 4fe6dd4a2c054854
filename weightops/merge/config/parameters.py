"""Finds the value of a parameter for one tensor: the level that sets it, the matching filter, the gradient's point.

Levels, nearest first: the input (model or slice source), the output slice, the module, the file, the method's default.
If no filter of a level matches the tensor, the next level decides. mergekit does the same, so its files have the same
meaning here; tests compare with mergekit's resolver.
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
    """The ``parameters`` that apply to a group, nearest first; those of an input only when ``model`` names it."""
    nearest: list[Parameters] = []
    if model is not None:
        nearest += [source.parameters for source in group.inputs if source.model == model]
    if group.slice is not None:
        nearest.append(group.slice.parameters)
    if group.module is not None:
        nearest.append(group.module.parameters)
    return (*nearest, config.parameters)


def deciding(parameter: Parameter, where: Sequence[Parameters], name: str) -> Condition | None:
    """The condition that sets a parameter for a tensor, or ``None`` if the default applies."""
    settings = (level.settings[parameter.name] for level in where if parameter.name in level)
    covering = (condition for setting in settings for condition in setting if condition.covers(name))
    return next(covering, None)


@dataclass(frozen=True)
class Resolved:
    """A method's parameters for one output tensor, and the conditions they came from.

    Attributes:
        values: For each parameter that is set, a value, or a list with one value for each input. Other parameters
            are left out, so the method's default applies.
        conditions: The conditions that set the values; they tell the lines in the file.
        missing: Parameters that have no default and are not set, each with the model it is missing for.
    """

    values: dict[str, Any]
    conditions: tuple[Condition, ...]
    missing: tuple[tuple[str, str | None], ...] = ()


def resolve(
    method: Operator, config: MergeConfig, group: Group, output: str, inputs: Sequence[tuple[str, str]], t: float | None
) -> Resolved:
    """Find the value of every parameter of a method for one output tensor.

    Args:
        method: The merge method.
        config: The document.
        group: The models or slice that the tensor is merged from.
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
        targets: list[tuple[str | None, str]] = list(inputs) if parameter.per_model else [(None, output)]
        conditions = [deciding(parameter, levels(config, group, model), name) for model, name in targets]
        used += [condition for condition in conditions if condition is not None]
        if parameter.required:
            pairs = zip(targets, conditions, strict=True)
            missing += [(parameter.name, model) for (model, _), condition in pairs if condition is None]
        if any(condition is not None for condition in conditions):
            read = [_value_or_default(condition, t, parameter, config) for condition in conditions]
            values[parameter.name] = read if parameter.per_model else read[0]
    return Resolved(values, tuple(dict.fromkeys(used)), tuple(missing))


def settings_for(
    method: Operator, config: MergeConfig, group: Group, output: str, inputs: Sequence[tuple[str, str]], t: float | None
) -> dict[str, Any]:
    """The keyword arguments of a method for one output tensor; see :func:`resolve`.

    Raises:
        WeightopsError: a value of the wrong kind or range, or a parameter that has no default and is not set.
    """
    resolved = resolve(method, config, group, output, inputs, t)
    if resolved.missing:
        raise WeightopsError(
            *(missing_setting(method, config, name, model, output) for name, model in resolved.missing)
        )
    return resolved.values


def missing_setting(method: Operator, config: MergeConfig, name: str, model: str | None, output: str) -> str:
    """The message for a parameter that has no default and is not set."""
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
