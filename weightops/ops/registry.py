"""The operator registry: a merge method is one pure function, and its signature is its schema.

A method takes aligned tensors and keyword parameters and returns one tensor:

* first argument ``deltas`` ([n, ...], fp32): it is given task vectors (model minus base); what it returns is added
  to the base;
* first argument ``models`` ([n, ...], fp32): it is given the weights themselves; what it returns is the result.

Keyword arguments are the configuration; a trailing underscore (``lambda_``) is not part of the key. Three names are
filled in by the engine and are not configuration: ``base`` (the base model's tensor), ``draw`` (randomness addressed
by element, see :mod:`.draw`) and ``place`` (where the tensor stands in the model).

Some methods are linear combinations whose coefficients follow from the inner products of their inputs alone. They name
a function ``coefficients(gram, **parameters)`` ([n, n] to [n], fp64; see :mod:`.gram` for whose inner products), so
that a first pass over the slices can sum the products and a second apply the combination.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import keyword
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from ..errors import WeightopsError

F = TypeVar("F", bound=Callable[..., Any])

Reads = Literal["elementwise", "tensor", "matrix", "model"]

FILLED_IN = ("base", "draw", "place")


class PerModelMark:
    """Marks a parameter that may differ from model to model."""


#: A number for each model. A method reads it with :func:`per_model`; a plain number serves every model alike.
PerModel = Annotated[Any, PerModelMark()]


@dataclass(frozen=True)
class Parameter:
    """One configuration key of a method."""

    name: str
    default: Any
    kind: str  # "float", "int", "bool", "str"
    per_model: bool
    choices: tuple[str, ...] = ()
    help: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def argument(self) -> str:
        """The function's own name for it: ``lambda_`` for the key ``lambda``."""
        return self.name + "_" * keyword.iskeyword(self.name)


@dataclass(frozen=True)
class Operator:
    """A merge method: the function, and what the engine must know to run it in slices.

    Attributes:
        reads: ``elementwise`` (any slice), ``tensor`` (a statistic of the whole tensor first), ``matrix`` (2-D;
            1-D tensors get what the docstring says), ``model`` (a statistic of the whole model first).
        takes: ``deltas`` or ``models``, the first argument's name.
        needs_base: Whether a base model must be named.
        models: Fewest and most models it merges, the base not counted (``None``: any number).
        paper: arXiv id, or who it is by.
        coefficients: From the Gram matrix of the inputs to the coefficients of their linear combination, for the
            methods that are one.
        whole_when: Parameters at which there is one such combination for the tensor, not one for each row.
    """

    name: str
    function: Callable[..., Any]
    reads: Reads
    takes: Literal["deltas", "models"]
    needs_base: bool
    models: tuple[int, int | None]
    paper: str
    parameters: tuple[Parameter, ...]
    fills: tuple[str, ...]
    coefficients: Callable[..., Any] | None = None
    whole_when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name; an unknown one is an error that names the nearest.

        Raises:
            WeightopsError: no such parameter.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = [p.name for p in self.parameters]
        takes = ", ".join(known) or "none"
        raise WeightopsError(f"{self.name}: unknown parameter {name!r}{nearest(name, known)}; it takes {takes}")

    def combination(self, parameters: Mapping[str, Any]) -> Callable[[Any], Any] | None:
        """The coefficients as a function of the Gram matrix alone, [n, n] to [n], fp64.

        Returns:
            ``None`` where the method, with these parameters, is not one linear combination of whole tensors.
        """
        given = {p.name: p.default for p in self.parameters} | dict(parameters)
        if self.coefficients is None or any(given[name] != value for name, value in self.whole_when.items()):
            return None
        wanted = inspect.signature(self.coefficients).parameters
        return functools.partial(self.coefficients, **{name: given[name] for name in given if name in wanted})


_REGISTRY: dict[str, Operator] = {}


def operator(
    *,
    reads: Reads,
    paper: str,
    needs_base: bool = False,
    models: tuple[int, int | None] = (1, None),
    name: str | None = None,
    coefficients: Callable[..., Any] | None = None,
    whole_when: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Register a function as a merge method; see the module's docstring for the contract.

    Raises:
        TypeError: the function breaks the contract, or the name is taken.
    """

    def register(function: F) -> F:
        method = _describe(
            function, name or function.__name__, reads, paper, needs_base, models, coefficients, whole_when or {}
        )
        taken = _REGISTRY.get(method.name)
        if taken is not None and taken.function.__module__ != function.__module__:
            raise TypeError(f"merge method {method.name!r} is already defined in {taken.function.__module__}")
        _REGISTRY[method.name] = method
        return function

    return register


def find(name: str) -> Operator:
    """The method of that name.

    Raises:
        WeightopsError: no such method; the message names the nearest.
    """
    if name not in _REGISTRY:
        raise WeightopsError(f"unknown merge method {name!r}{nearest(name, _REGISTRY)}; `weightops methods` lists them")
    return _REGISTRY[name]


def methods() -> Iterator[Operator]:
    """Every registered method, by name."""
    return iter(sorted(_REGISTRY.values(), key=lambda method: method.name))


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """A hint for a misspelt word, ready to stand in a message, or nothing.

    >>> nearest("densty", ["density", "weight"])
    " (did you mean 'density'?)"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _describe(
    function: Callable[..., Any],
    name: str,
    reads: Reads,
    paper: str,
    needs_base: bool,
    models: tuple[int, int | None],
    coefficients: Callable[..., Any] | None,
    whole_when: Mapping[str, Any],
) -> Operator:
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)
    first, *rest = signature.parameters.values()
    if first.name not in ("deltas", "models"):
        raise TypeError(f"{name}: the first argument of a merge method is `deltas` or `models`, not `{first.name}`")
    if any(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in rest):
        raise TypeError(f"{name}: the arguments after `{first.name}` are keyword-only")
    described = _argument_help(function)
    return Operator(
        name=name,
        function=function,
        reads=reads,
        takes=typing.cast(Literal["deltas", "models"], first.name),
        needs_base=needs_base or first.name == "deltas",
        models=models,
        paper=paper,
        parameters=tuple(_parameter(p, hints[p.name], described) for p in rest if p.name not in FILLED_IN),
        fills=tuple(p.name for p in rest if p.name in FILLED_IN),
        coefficients=coefficients,
        whole_when=whole_when,
    )


def _parameter(parameter: inspect.Parameter, hint: Any, described: dict[str, str]) -> Parameter:
    per_model = hint is PerModel
    choices: tuple[str, ...] = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    members = [m for m in (typing.get_args(hint) or (hint,)) if m is not type(None)]
    kind = "float" if per_model else "str" if choices else getattr(members[0], "__name__", "float")
    return Parameter(
        name=parameter.name.rstrip("_"),
        default=parameter.default,
        kind=kind,
        per_model=per_model,
        choices=choices,
        help=described.get(parameter.name, ""),
    )


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
