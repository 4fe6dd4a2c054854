"""A recipe from YAML and ``--set``: every fault of the file at once, each with its line."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from weightops.errors import WeightopsError
from weightops.io.faults import Faults
from weightops.io.yaml_lines import Entry, Node, documents
from weightops.recipes.floor.settings import faults_in

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _RecipeFaults(Faults):
    """Faults with the lines of a file; below line 0 are the ``--set`` that were given."""

    def __init__(self, where: str, sets: Sequence[str]) -> None:
        super().__init__(where)
        self.sets = sets

    def order(self, line: int) -> tuple[int, ...]:
        """By line, then those of ``--set``."""
        return (line < 0, abs(line))

    def place(self, line: int) -> str:
        """The ``--set`` of a line below 0."""
        return f"--set {self.sets[-line - 1]}" if line < 0 else super().place(line)


def read_recipe(text: str, where: str, kinds: Mapping[str, type], sets: Sequence[str] = ()) -> Any:
    """The recipe of a YAML text.

    Args:
        text: With the key ``recipe``, which names one of the kinds; the others are that class's fields.
        where: Name of the file, for messages.
        kinds: Recipe classes by name.
        sets: ``key=value`` or ``key.key=value``, over what the text says.

    Raises:
        WeightopsError: with everything that is wrong.
    """
    faults = _RecipeFaults(where, sets)
    found = documents(text, faults)
    if not faults and (len(found) != 1 or not isinstance(found[0].value, dict)):
        faults.add(1, "a recipe is one document of keys and values")
    faults.raise_any()
    entries = dict(found[0].value)
    for number, given in enumerate(sets, 1):
        _set(entries, given, -number, faults)
    named = entries.pop("recipe", None)
    kind = kinds.get(named.node.value) if named and isinstance(named.node.value, str) else None
    if kind is None:
        said = "recipe is missing" if named is None else f"no recipe {named.node.value!r}"
        faults.add(named.line if named else 1, f"{said}; there is {', '.join(sorted(kinds))}")
    recipe = None if kind is None else _settings(kind, Node(entries, 1), "", faults)
    faults.raise_any()
    for path, problem in faults_in(recipe):
        faults.add(_line(entries, path), f"{'.'.join(path)}: {problem}")
    faults.raise_any()
    return recipe


def read_file(file: Path) -> str:
    """The text of a recipe.

    Raises:
        WeightopsError: it cannot be read.
    """
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); `weightops recipes list`") from error
    except UnicodeDecodeError as error:
        raise WeightopsError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _set(entries: dict[str, Entry], given: str, line: int, faults: Faults) -> None:
    path, equals, written = given.partition("=")
    if not equals or not all(path.split(".")):
        faults.add(line, "is written key=value, or key.key=value")
        return
    own = Faults("value")
    values = documents(written, own)
    if own or len(values) > 1:
        faults.add(line, "the value is not YAML")
        return
    *above, last = path.split(".")
    for name in above:
        inner = entries[name].node.value if name in entries else None
        entries[name] = Entry(line, Node(dict(inner) if isinstance(inner, dict) else {}, line))
        entries = entries[name].node.value
    entries[last] = Entry(line, _at(values[0], line) if values else Node(None, line))


def _at(node: Node, line: int) -> Node:
    """The node with everything in it on one line."""
    value = node.value
    if isinstance(value, dict):
        value = {key: Entry(line, _at(entry.node, line)) for key, entry in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_at(item, line) for item in value)
    return Node(value, line)


def _settings(kind: type, node: Node, path: str, faults: Faults) -> Any:
    if not isinstance(node.value, dict):
        faults.add(node.line, f"{path} is written as keys and values")
        return None
    known: dict[str, Field[Any]] = {each.name: each for each in fields(kind)}
    hints, values = get_type_hints(kind), {}
    for name, entry in node.value.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; known here: {', '.join(known)}"
            faults.add(entry.line, f"unknown key {name!r}{hint}")
        else:
            values[name] = _value(hints[name], entry.node, f"{path}.{name}".lstrip("."), faults)
    for name, each in known.items():
        if name not in node.value and each.default is MISSING and each.default_factory is MISSING:
            faults.add(node.line, f"{path}.{name} is missing".lstrip("."))
            values[name] = None
    return None if faults else kind(**values)


def _value(hint: Any, node: Node, path: str, faults: Faults) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if node.value is None:
            return None
        return _value(next(each for each in inner if each is not types.NoneType), node, path, faults)
    if is_dataclass(hint):
        return _settings(hint, node, path, faults)  # type: ignore[arg-type]
    if origin is tuple:
        return _items(inner, node, path, faults)
    if origin is not None and origin is not Literal:
        return _plain(node) if isinstance(node.value, dict) else _refuse(node, path, "keys and values", faults)
    if origin is Literal:
        return node.value if node.value in inner else _refuse(node, path, f"one of {', '.join(inner)}", faults)
    return _scalar(hint, node, path, faults)


def _items(inner: tuple[Any, ...], node: Node, path: str, faults: Faults) -> Any:
    """A list; one value that is no list stands for a list of it."""
    items = node.value if isinstance(node.value, tuple) else (node,)
    if inner[-1] is not ... and len(items) != len(inner):
        return _refuse(node, path, f"a list of {len(inner)}", faults)
    return tuple(_value(inner[0], item, path, faults) for item in items)


def _scalar(kind: type, node: Node, path: str, faults: Faults) -> Any:
    value = node.value
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else _refuse(node, path, _WORDS[kind], faults)


def _refuse(node: Node, path: str, wanted: str, faults: Faults) -> None:
    faults.add(node.line, f"{path} must be {wanted}; found {_plain(node)!r}")


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(entry.node) for key, entry in node.value.items()}
    return [_plain(item) for item in node.value] if isinstance(node.value, tuple) else node.value


def _line(entries: Mapping[str, Entry], path: Sequence[str]) -> int:
    """The line of a field, or of what it stands in where the file does not name it."""
    line = 1
    for name in path:
        if not isinstance(entries, Mapping) or name not in entries:
            break
        line, entries = entries[name].line, entries[name].node.value
    return line
