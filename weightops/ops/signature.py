"""Uses a method's signature as its schema: the type and the allowed values of each parameter, and reading a value.

Merge files, the algebra (``wo.ties([...], density=0.3)``), plugins and the engine all read values here, so a wrong
value gives the same message everywhere.
"""

from __future__ import annotations

import inspect
import keyword
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..errors import WeightopsError

#: Arguments that the engine fills in; they are not configuration.
FILLED_IN = ("base", "draw", "place")

_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))
_PLAIN: Mapping[Any, str] = {float: "float", int: "int", bool: "bool", str: "str"}
_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}


class PerModelMark:
    """Marks a parameter that may have a separate value for each model."""


#: A number for each model. A method reads it with :func:`.sparsify.per_model`; a plain number applies to every model.
PerModel = Annotated[Any, PerModelMark()]


@dataclass(frozen=True)
class Range:
    """The allowed values of a number; either end may be omitted.

    >>> 0 in Range(0, 1), 0 in Range(0, 1, above_low=True), str(Range(0, 1, above_low=True)), str(Range(1))
    (True, False, 'in (0, 1]', 'at least 1')
    """

    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above_low else value >= self.low
        under = value < self.high if self.below_high else value <= self.high
        return over and under

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.above_low else f"at least {self.low:g}"
        if math.isinf(self.low):
            return f"below {self.high:g}" if self.below_high else f"at most {self.high:g}"
        return f"in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}{')' if self.below_high else ']'}"


@dataclass(frozen=True)
class Switch:
    """The texts that ``true`` and ``false`` stand for, in a parameter that mergekit's files have as a switch."""

    on: str
    off: str


@dataclass(frozen=True)
class Parameter:
    """One configuration key of a method.

    Attributes:
        kind: ``float``, ``int``, ``bool`` or ``str``.
        per_model: Whether the value may be one number for each model.
        choices: The allowed texts; empty: any text.
        help: The description in the docstring.
        range: The allowed numbers; ``None``: any number.
        optional: Whether the value may be ``None``.
        switch: The choices that ``true`` and ``false`` stand for; ``None``: they are no values.
    """

    name: str
    default: Any
    kind: str
    per_model: bool
    choices: tuple[str, ...] = ()
    help: str = ""
    range: Range | None = None
    optional: bool = False
    switch: Switch | None = None

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def argument(self) -> str:
        """The name of the function's argument: ``lambda_`` for the key ``lambda``."""
        return self.name + "_" * keyword.iskeyword(self.name)

    @property
    def type(self) -> str:
        """The type and the allowed values, for people: ``float in (0, 1]``."""
        if self.choices:
            return " | ".join(self.choices)
        return self.kind if self.range is None else f"{self.kind} {self.range}"

    def read(self, value: Any) -> Any:
        """Read one value as the parameter's type; ``1e-5``, which YAML 1.1 reads as text, is a number.

        Raises:
            WeightopsError: the value does not have that type, or is outside the parameter's range or choices.
        """
        if value is None and self.optional:
            return None
        if self.switch is not None and (flag := _flag(value)) is not None:
            return self.switch.on if flag else self.switch.off
        result = _READERS[self.kind](value)
        if result is None:
            raise WeightopsError(f"{self.name} must be {_KINDS[self.kind]}, not {value!r}")
        if self.choices and result not in self.choices:
            raise WeightopsError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        if self.range is not None and result not in self.range:
            raise WeightopsError(f"{self.name} must be {self.range}, not {result:g}")
        return result

    def read_for(self, value: Any, count: int) -> Any:
        """Read a value for all models or, if the parameter allows it, a sequence with one value for each model.

        Returns:
            The value, or a tuple of ``count`` values.

        Raises:
            WeightopsError: as for :meth:`read`; also a sequence of the wrong length.
        """
        if not self.per_model or not (isinstance(value, Sequence) or hasattr(value, "tolist")) or _is_single(value):
            return self.read(value)
        values = value.tolist() if hasattr(value, "tolist") else list(value)
        if len(values) != count:
            raise WeightopsError(
                f"{self.name} has {len(values)} values for {count} models; give one number, or one for each model"
            )
        return tuple(self.read(item) for item in values)


def parameters_of(name: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The configuration keys of a method's function: its keyword arguments, except those that the engine fills in.

    Raises:
        TypeError: an annotation is missing or not supported, or a default is outside its range.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    described = _argument_help(function)
    arguments = list(inspect.signature(function).parameters.values())[1:]
    return tuple(_parameter(name, a, hints.get(a.name), described) for a in arguments if a.name not in FILLED_IN)


def _parameter(method: str, argument: inspect.Parameter, hint: Any, described: Mapping[str, str]) -> Parameter:
    inner, optional, extras = _taken_apart(hint)
    per_model = any(isinstance(extra, PerModelMark) for extra in extras)
    choices: tuple[Any, ...] = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    kind = "float" if per_model else "str" if choices else _PLAIN.get(inner)
    ranges = [extra for extra in extras if isinstance(extra, Range)]
    switch = next((extra for extra in extras if isinstance(extra, Switch)), None)
    unknown = [extra for extra in extras if not isinstance(extra, Range | PerModelMark | Switch)]
    unknown += [switch] * (switch is not None and not {switch.on, switch.off} <= set(choices))
    texts = all(isinstance(choice, str) for choice in choices)
    if kind is None or unknown or len(ranges) > 1 or not texts or (ranges and kind not in ("float", "int")):
        raise TypeError(
            f"{method}: the annotation of {argument.name!r} is not supported; allowed are float, int, bool, str, "
            "Literal of texts and PerModel, each optionally with `| None`; a number may have one range: "
            "Annotated[float, Range(0, 1)]; texts may have a switch among them: Switch(on, off)"
        )
    range_ = ranges[0] if ranges else None
    name, text = argument.name.rstrip("_"), described.get(argument.name, "")
    parameter = Parameter(name, argument.default, kind, per_model, choices, text, range_, optional, switch)
    if not parameter.required:
        try:
            parameter.read(argument.default)
        except WeightopsError as error:
            raise TypeError(f"{method}: the default of {argument.name!r}: {error}") from None
    return parameter


def _taken_apart(hint: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """Split a hint into (type, whether ``None`` is allowed, metadata of ``Annotated``)."""
    extras: tuple[Any, ...] = ()
    optional = False
    while True:
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            extras += tuple(more)
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [member for member in typing.get_args(hint) if member is not type(None)]
            if optional or len(members) != 1:
                return None, optional, extras
            hint, optional = members[0], True
        else:
            return hint, optional, extras


def _is_single(value: Any) -> bool:
    """Whether a value with a length or a ``tolist`` is still a single value: a text, or an array without axes."""
    return isinstance(value, str | bytes) or getattr(value, "ndim", 1) == 0


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a torch tensor of several elements
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return True if value.lower() in _TRUE else False if value.lower() in _FALSE else None
    number = _number(value)
    return bool(number) if number in (0.0, 1.0) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[str, Callable[[Any], Any]] = {"float": _number, "int": _whole, "bool": _flag, "str": _word}


def _argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """The lines of the docstring's ``Args:`` section, by argument."""
    described: dict[str, str] = {}
    inside, last = False, ""
    for line in (inspect.getdoc(function) or "").splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and not line.startswith("    "):
            break
        elif inside and line.startswith("        ") and last:
            described[last] += " " + line.strip()
        elif inside:
            last, _, text = line.strip().partition(":")
            described[last] = text.strip()
    return described
