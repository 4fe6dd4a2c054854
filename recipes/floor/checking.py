"""Settings checked: types and ranges by pydantic, relations between fields by the settings themselves.

Settings are frozen dataclasses. The type of a field says what it may hold: ``Annotated[int, Field(ge=1)]``, say. A
rule about several fields is a method with ``@relation``; it is skipped if a field that it reads is wrong, or is what an
unknown key probably means. So all faults are reported at once, and none of them merely follows from another.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from weightops.errors import WeightopsError
from weightops.recipes.floor.components import Component, component, kind_of
from weightops.recipes.floor.familiar import familiar

Place = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""
T = TypeVar("T")

_WRONG = object()
_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid dictionary": "keys and values",
    "an object": "keys and values",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}
"""pydantic's words to ours."""


class _WrongFieldError(Exception):
    """A relation read a field whose value is already known to be wrong."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with settings.

    Attributes:
        place: Where.
        problem: What, with the name of the field.
    """

    place: Place
    problem: str


def relation(name: str) -> Callable[[T], T]:
    """Mark a method as a rule about several fields: it yields what is wrong, to be reported at the field ``name``."""

    def marked(method: T) -> T:
        method.relation = name  # type: ignore[attr-defined]
        return method

    return marked


def check(settings: Any) -> None:
    """Raise everything that is wrong with a settings value and those inside it.

    Raises:
        WeightopsError: each fault with the name of its field.
    """
    _, faults = read_settings(type(settings), settings)
    if faults:
        raise WeightopsError(*(fault.problem for fault in faults))


def plain(settings: Any) -> dict[str, Any]:
    """A settings value as YAML would write it, defaults included."""
    values = {each.name: getattr(settings, each.name) for each in _parameters(type(settings))}
    marks = {name: _mark(hint) for name, hint in _hints(type(settings)).items()}
    return {
        name: ({"kind": kind_of(value)} if marks[name] else {}) | plain(value) if is_dataclass(value) else value
        for name, value in values.items()
    }


def read_settings(kind: type, given: Any, place: Place = (), root: type | None = None) -> tuple[Any, list[Fault]]:
    """A settings value made of keys and values, or checked again.

    Args:
        kind: Its class.
        given: Keys and values, or a value of that class.
        place: Keys and positions that lead to it.
        root: Class of the outermost settings, for hints.

    Returns:
        The value, of use only where there are no faults; and the faults.
    """
    if isinstance(given, kind):
        given = {each.name: getattr(given, each.name) for each in _parameters(kind)}
    if not isinstance(given, Mapping):
        return _WRONG, [Fault(place, f"{dotted(place)}: must be keys and values; found {_shown(given)}")]
    hints, known, root = _hints(kind), {each.name: each for each in _parameters(kind)}, root or kind
    unknown = [(name, value) for name, value in given.items() if name not in known]
    faults = [fault for name, value in unknown for fault in _unknown_key(place, name, value, tuple(known), root)]
    values: dict[str, Any] = {_meant(name, tuple(known)): _WRONG for name, _ in unknown}
    for name, each in known.items():
        if name in given:
            values[name], inner = _read_field(hints[name], given[name], (*place, name), root)
            faults += inner
        elif name not in values and each.default is MISSING and each.default_factory is MISSING:
            values[name] = _WRONG
            faults.append(Fault(place, f"{dotted((*place, name))} is missing"))
    settings = _partial(kind, values) if faults else kind(**values)
    return settings, faults + [
        Fault((*place, name), f"{dotted((*place, name))}: {p}") for name, p in _related(settings)
    ]


def dotted(place: Place) -> str:
    """A place as messages name it.

    >>> dotted(("data", "files", 0))
    'data.files[0]'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def section_of(hint: Any) -> type | None:
    """The settings class in a field's type, also one that may be null; ``None`` where there is none."""
    inner = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((each for each in inner if isinstance(each, type) and is_dataclass(each)), None)


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _parameters(kind: type) -> list[Any]:
    return [each for each in fields(kind) if not each.metadata.get("runtime")]


def _mark(hint: Any) -> Component | None:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Component)), None)


def _read_field(hint: Any, given: Any, place: Place, root: type) -> tuple[Any, list[Fault]]:
    if mark := _mark(hint):
        if given is None and type(None) in get_args(get_args(hint)[0]):
            return None, []
        return _read_component(mark, given, place, root)
    section = section_of(hint)
    if section and not (given is None and section is not hint):
        return read_settings(section, given, place, root)
    return _read_value(hint, given, place)


def _read_component(mark: Component, given: Any, place: Place, root: type) -> tuple[Any, list[Fault]]:
    if is_dataclass(given):
        return read_settings(type(given), given, place, root)
    keys = {"kind": given} if isinstance(given, str) else given
    if not isinstance(keys, Mapping):
        return _WRONG, [Fault(place, f"{dotted(place)}: must be a name or keys and values; found {_shown(given)}")]
    if "kind" not in keys:
        return _WRONG, [Fault(place, f"{dotted(place)}: needs its name; write it as {{kind: NAME, ...}}")]
    try:
        chosen = component(mark.room, str(keys["kind"]))
    except WeightopsError as error:
        return _WRONG, [Fault((*place, "kind"), f"{dotted(place)}: {problem}") for problem in error.problems]
    return read_settings(chosen, {name: value for name, value in keys.items() if name != "kind"}, place, root)


def _read_value(hint: Any, given: Any, place: Place) -> tuple[Any, list[Fault]]:
    """A value by pydantic, with JSON's types: a list is a tuple, a whole number a number, and text neither."""
    if get_origin(hint) is tuple and not isinstance(given, list | tuple | Mapping):
        given = [given]  # one value stands for a list of it
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    try:
        text = json.dumps(given, default=str)
        try:
            return adapter.validate_json(text, strict=True), []
        except ValidationError as error:
            repaired = _with_numbers(given, error)
            return adapter.validate_json(json.dumps(repaired, default=str), strict=True), []
    except ValidationError as error:
        return _WRONG, list(_worded(error, given, place))
    except ValueError:  # a number of thousands of digits
        return _WRONG, [Fault(place, f"{dotted(place)}: the number is too long")]


def _with_numbers(given: Any, error: ValidationError) -> Any:
    """The value with texts such as ``1e-4`` as numbers: YAML 1.1 reads them as text."""
    places = [_existing(given, each["loc"]) for each in error.errors() if each["type"] == "float_type"]
    copy = json.loads(json.dumps({"value": given}, default=str))
    for place in places:
        *above, last = ("value", *place)
        inner = _at(copy, tuple(above))
        with contextlib.suppress(ValueError):
            inner[last] = float(inner[last]) if isinstance(inner[last], str) else inner[last]
    return copy["value"]


def _worded(error: ValidationError, given: Any, place: Place) -> Iterator[Fault]:
    """pydantic's faults in our words; of a union, what any of its types would accept, in one line."""
    by_place: dict[Place, list[str]] = {}
    for each in error.errors():
        by_place.setdefault(_existing(given, each["loc"]), []).append(_sentence(each["type"], each["msg"]))
    for loc, sentences in by_place.items():
        first, *others = dict.fromkeys(sentences)
        joined = " or ".join((first, *(other.removeprefix("must be ") for other in others)))
        yield Fault((*place, *loc), f"{dotted((*place, *loc))}: {joined}; found {_shown(_at(given, loc))}")


def _sentence(kind: str, message: str) -> str:
    if kind in ("missing", "too_long"):
        return "has too few items" if kind == "missing" else "has too many items"
    if kind == "literal_error":
        message = message.replace("Input should be", "must be one of").replace(" or ", ", ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message.replace("Input should be", "must be").replace("String should have", "must have").replace("'", "")


def _existing(given: Any, loc: Place) -> Place:
    """The part of pydantic's location that leads through the value; it also names the types of unions."""
    place: list[str | int] = []
    for part in loc:
        inside = isinstance(given, Mapping) and part in given
        if inside or (isinstance(given, list | tuple) and isinstance(part, int) and part < len(given)):
            place.append(part)
            given = given[part]
    return tuple(place)


def _at(given: Any, loc: Place) -> Any:
    for part in loc:
        given = given[part]
    return given


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _partial(kind: type, values: Mapping[str, Any]) -> Any:
    """Settings with some wrong fields: reading one of these raises."""

    def refuse(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is _WRONG:
            raise _WrongFieldError
        return value

    settings: Any = object.__new__(type(kind.__name__, (kind,), {"__getattribute__": refuse}))
    for each in fields(kind):
        value = values.get(each.name, each.default)
        if value is MISSING:
            factory = each.default_factory
            value = factory() if callable(factory) else _WRONG
        object.__setattr__(settings, each.name, value)
    return settings


def _related(settings: Any) -> Iterator[tuple[str, str]]:
    """Field and problem of each relation that does not hold."""
    kind = type(settings)
    for name in dict.fromkeys(name for each in reversed(kind.__mro__) for name in vars(each)):
        method = getattr(kind, name, None)
        if field := getattr(method, "relation", None):
            rule = cast(Callable[[Any], Iterable[str]], method)
            try:
                yield from [(field, problem) for problem in rule(settings)]
            except _WrongFieldError:
                continue


def _meant(name: str, known: tuple[str, ...]) -> str:
    """The field that an unknown key probably means; the key itself where there is none."""
    here = (familiar(name) or "").rpartition(".")[2]
    return here if here in known else next(iter(difflib.get_close_matches(name, known, n=1)), name)


def _unknown_key(place: Place, name: str, value: Any, known: tuple[str, ...], root: type) -> Iterator[Fault]:
    """A fault for an unknown key; for a section of another tool's recipe, one for each of its keys."""
    section = familiar(name)
    if section is None or not isinstance(value, Mapping) or not value or not _has(root, section):
        yield Fault((*place, name), _unknown(name, known, root))
        return
    for key in value:
        here = familiar(key) or ""
        meant = here if here.startswith(f"{section}.") else section
        yield Fault((*place, name, key), f"unknown key {f'{name}.{key}'!r}; here it is {meant}")


def _unknown(name: str, known: tuple[str, ...], root: type) -> str:
    if (here := familiar(name)) and _has(root, here):
        return f"unknown key {name!r}; here it is {here}"
    if close := difflib.get_close_matches(name, known, n=1):
        return f"unknown key {name!r} (did you mean {close[0]!r}?)"
    return f"unknown key {name!r}; available: {', '.join(known) or 'none'}"


def _has(kind: type, place: str) -> bool:
    """Whether settings of a class have a place."""
    name, _, rest = place.partition(".")
    hint = _hints(kind).get(name)
    inner = section_of(hint)
    return hint is not None and (not rest or inner is None or _has(inner, rest))
