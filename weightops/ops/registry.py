"""The operator registry: a merge method is one pure function, and its signature is its schema.

A method takes aligned tensors and keyword parameters and returns one tensor:

* first argument ``deltas`` ([n, ...], fp32): the method gets task vectors (model minus base), and its result is added
  to the base;
* first argument ``models`` ([n, ...], fp32): the method gets the weights themselves, and its result is the output.

Keyword arguments are the configuration; a trailing underscore (``lambda_``) is not part of the key. Their annotations
give the allowed values (:mod:`.signature`): ``Annotated[float, Range(0, 1)]``. The engine fills in three arguments,
which are not configuration: ``base`` (the base model's tensor), ``draw`` (random numbers for each element, see
:mod:`.draw`) and ``place`` (the tensor's layer in the model).

Some methods are linear combinations of their inputs. They declare it, because the engine can then avoid whole tensors:

* ``affine=function``: the coefficients depend only on the parameters: ``function(count, **parameters)`` returns one
  for each of ``count`` models;
* ``coefficients=function``: the coefficients depend on the inner products of the inputs, the Gram matrix:
  ``function(gram, **parameters)`` ([n, n] to [n], fp64, numpy; :mod:`.gram` lists the inputs). A first pass over the
  slices sums the products, a second applies the combination. With ``reads="model"`` the products are summed over every
  tensor of the merge, so the coefficients depend on the whole models.

The tests check every method against the laws of ``tests/support/merge_laws.py``. A method declares the laws that it
breaks: ``breaks=("size",)``.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ..errors import WeightopsError, attempt_all
from .signature import FILLED_IN, Parameter, parameters_of

F = TypeVar("F", bound=Callable[..., Any])

Reads = Literal["elementwise", "tensor", "matrix", "model"]

#: Laws that most methods keep; the others must declare it. ``identical``: equal models merge to that model;
#: ``one``: one model alone is that model; ``order``: the order of the models does not matter; ``size``: task vectors
#: twice as large merge to a task vector twice as large.
Law = Literal["identical", "one", "order", "size"]


@dataclass(frozen=True)
class Operator:
    """A merge method: its function, and the facts that the engine needs to run it in slices.

    Attributes:
        reads: ``elementwise`` (any slice), ``tensor`` (needs a statistic of the whole tensor), ``matrix`` (2-D; the
            docstring describes 1-D tensors), ``model`` (needs the Gram matrix of the whole model).
        takes: ``deltas`` or ``models``, the first argument's name.
        needs_base: Whether a base model must be named.
        models: Least and most number of models, without the base (``None``: no limit).
        paper: arXiv id, or the author.
        coefficients: Function from the Gram matrix of the inputs to the coefficients of their linear combination, for
            methods that are one.
        whole_when: Parameter values with which the whole tensor has one combination, rather than one for each row.
        affine: Function from the number of models and the parameters to the coefficients, if those are enough.
        breaks: Laws that the method does not keep.
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
    affine: Callable[..., Sequence[float]] | None = None
    breaks: tuple[Law, ...] = ()

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name; the error for an unknown name suggests the nearest one.

        Raises:
            WeightopsError: no such parameter.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = [p.name for p in self.parameters]
        takes = ", ".join(known) or "none"
        raise WeightopsError(f"{self.name}: unknown parameter {name!r}{nearest(name, known)}; available: {takes}")

    def settings(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Read and check the settings for a merge of ``count`` models; omitted ones keep the method's default.

        Raises:
            WeightopsError: an unknown parameter, a value of the wrong type or out of range, a list whose length is not
                the number of models, or a missing parameter without a default; all problems at once.
        """
        reading = [functools.partial(self._setting, name, value, count) for name, value in given.items()]
        missing = [p.name for p in self.parameters if p.required and p.name not in given]
        reading += [functools.partial(self._refuse_missing, name) for name in missing]
        return dict(attempt_all(reading))

    def _setting(self, name: str, value: Any, count: int) -> tuple[str, Any]:
        return name, self.parameter(name).read_for(value, count)

    def _refuse_missing(self, name: str) -> tuple[str, Any]:
        raise WeightopsError(f"{self.name} needs {name!r}, which has no default")

    def combination(self, settings: Mapping[str, Any]) -> Callable[[Any], Any] | None:
        """The coefficients as a function of the Gram matrix alone, [n, n] to [n], numpy fp64.

        Returns:
            ``None`` if the method, with these settings, is not one linear combination of whole tensors.
        """
        complete = self._with_defaults(settings)
        if self.coefficients is None or any(complete[name] != value for name, value in self.whole_when.items()):
            return None
        return functools.partial(self.coefficients, **_arguments(self, self.coefficients, complete))

    def affine_coefficients(self, settings: Mapping[str, Any], count: int) -> list[float] | None:
        """The coefficient of each of ``count`` models, fp64, if they depend only on the settings.

        Returns:
            ``None`` for other methods.

        Raises:
            WeightopsError: the method refuses these settings.
        """
        if self.affine is None:
            return None
        return list(self.affine(count, **_arguments(self, self.affine, self._with_defaults(settings))))

    def _with_defaults(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {p.name: p.default for p in self.parameters} | dict(settings)


def _arguments(method: Operator, function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a function of the method takes, by the names of its arguments."""
    accepted = inspect.signature(function).parameters
    named = {method.parameter(name).argument: value for name, value in settings.items()}
    return {name: value for name, value in named.items() if name in accepted}


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
    affine: Callable[..., Sequence[float]] | None = None,
    breaks: tuple[Law, ...] = (),
) -> Callable[[F], F]:
    """Register a function as a merge method; see the module's docstring for the contract.

    Raises:
        TypeError: the function breaks the contract, or the name is taken.
    """

    def register(function: F) -> F:
        method = _describe(
            function,
            name=name or function.__name__,
            reads=reads,
            needs_base=needs_base,
            models=models,
            paper=paper,
            coefficients=coefficients,
            whole_when=whole_when or {},
            affine=affine,
            breaks=breaks,
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
    """A hint for a misspelt word, to insert into a message, or an empty string.

    >>> nearest("densty", ["density", "weight"])
    " (did you mean 'density'?)"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _describe(function: Callable[..., Any], *, name: str, needs_base: bool, **declared: Any) -> Operator:
    first, *rest = inspect.signature(function).parameters.values()
    if first.name not in ("deltas", "models"):
        raise TypeError(f"{name}: the first argument of a merge method is `deltas` or `models`, not `{first.name}`")
    if any(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in rest):
        raise TypeError(f"{name}: the arguments after `{first.name}` are keyword-only")
    method = Operator(
        name=name,
        function=function,
        takes=typing.cast(Literal["deltas", "models"], first.name),
        needs_base=needs_base or first.name == "deltas",
        parameters=parameters_of(name, function),
        fills=tuple(p.name for p in rest if p.name in FILLED_IN),
        **declared,
    )
    for problem in _contradictions(method):
        raise TypeError(f"{name}: {problem}")
    return method


def _contradictions(method: Operator) -> Iterator[str]:
    """Contradictions in a method's declaration."""
    known = {"reads": typing.get_args(Reads), "breaks": typing.get_args(Law)}
    for word, values in (("reads", (method.reads,)), ("breaks", method.breaks)):
        for value in values:
            if value not in known[word]:
                yield f"{word}={value!r} is not one of {', '.join(known[word])}{nearest(str(value), known[word])}"
    if method.reads == "model" and (method.coefficients is None or method.whole_when):
        yield 'reads="model" needs coefficients=, a function of the Gram matrix of the whole model, and no whole_when='
    if method.affine is not None and (method.coefficients is not None or method.reads != "elementwise"):
        yield 'affine= goes with reads="elementwise" and without coefficients='
    arguments = {p.argument for p in method.parameters}
    for word, function in (("coefficients", method.coefficients), ("affine", method.affine)):
        for name in list(inspect.signature(function).parameters)[1:] if function is not None else ():
            if name not in arguments:
                yield f"{word}= takes {name!r}, which is not a parameter of the method"
    for name in method.whole_when:
        if name not in {p.name for p in method.parameters}:
            yield f"whole_when= names {name!r}, which is not a parameter of the method"
