"""A recipe from YAML and ``--set``: every fault at once, each with its line or the ``--set`` that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weightops.io.faults import Faults
from weightops.io.yaml_lines import Entry, Node, documents
from weightops.recipes.floor.checking import Fault, Place, read_settings

LORA = ("training", "lora")
"""The older spelling of ``training.update: {kind: lora, ...}``."""


class _RecipeFaults(Faults):
    """Faults with the lines of a file; line -1 is the first ``--set``, -2 the second, and so on."""

    def __init__(self, where: str, sets: Sequence[str]) -> None:
        super().__init__(where)
        self.sets = sets

    def order(self, line: int) -> tuple[int, ...]:
        """By line, then those of ``--set``."""
        return (line < 0, abs(line))

    def place(self, line: int) -> str:
        """The ``--set`` of a line below 0."""
        return f"set {self.sets[-line - 1]}" if line < 0 else super().place(line)


def read_recipe(
    text: str,
    where: str,
    routines: Sequence[str],
    settings_of: Callable[[str], type],
    sets: Sequence[str] = (),
    further: Callable[[Any], Iterable[Fault]] = lambda recipe: (),
) -> Any:
    """The recipe of a YAML text.

    Args:
        text: With the key ``recipe``, which names a routine; the other keys are that routine's settings.
        where: Name of the file, for messages.
        routines: Names of the routines.
        settings_of: The settings class of one of them.
        sets: ``key=value`` or ``key.key=value``; these override the text.
        further: A further check, made if the settings are right.

    Raises:
        WeightopsError: everything that is wrong.
    """
    faults = _RecipeFaults(where, sets)
    roots = documents(text, faults)
    if not faults and (len(roots) != 1 or not isinstance(roots[0].value, dict)):
        faults.add(1, "a recipe must be one YAML document of keys and values")
    faults.raise_any()
    entries = _without_lora(dict(roots[0].value), faults)
    for number, given in enumerate(sets, 1):
        _set(entries, given, -number, faults)
    named = entries.pop("recipe", None)
    routine: Any = named.node.value if named else None
    if routine not in routines:
        problem = f"no recipe {_plain(named.node)!r}" if named else "recipe is missing"
        faults.add(named.line if named else 1, f"{problem}; available: {', '.join(routines)}")
        faults.raise_any()
    recipe, wrong = read_settings(settings_of(routine), _plain(Node(entries, 1)))
    for fault in wrong or (() if faults else further(recipe)):
        faults.add(_line(Node(entries, 1), fault.place), fault.problem)
    faults.raise_any()
    return recipe


def _without_lora(entries: dict[str, Entry], faults: Faults) -> dict[str, Entry]:
    """The entries with ``training.lora`` as ``training.update``."""
    training = entries.get(LORA[0])
    if training is None or not isinstance(training.node.value, dict) or LORA[1] not in training.node.value:
        return entries
    keys = dict(training.node.value)
    lora = keys.pop(LORA[1])
    if "update" in keys:
        faults.add(lora.line, "training.lora is another spelling of training.update; keep one of them")
    keys["update"] = Entry(lora.line, _lora_update(lora.node))
    return {**entries, LORA[0]: Entry(training.line, Node(keys, training.node.line))}


def _lora_update(node: Node) -> Node:
    if node.value is None:
        return Node("full", node.line)
    keys = node.value if isinstance(node.value, dict) else {"lora": Entry(node.line, node)}
    return Node({"kind": Entry(node.line, Node("lora", node.line)), **keys}, node.line)


def _set(entries: dict[str, Entry], given: str, line: int, faults: Faults) -> None:
    """Override entries by one ``--set``."""
    written, equals, value = given.partition("=")
    path = tuple(written.split("."))
    if not equals or not all(path):
        faults.add(line, "must be written key=value or key.key=value")
        return
    unread = Faults("value")
    values = documents(value, unread)
    if unread or len(values) > 1:
        faults.add(line, "the value is not YAML")
        return
    node = _on_line(values[0], line) if values else Node(None, line)
    if path[:2] == LORA:
        path = (LORA[0], "update", *path[2:])
        if len(path) == 2:
            node = _lora_update(node)
        elif _kind(entries) != "lora":
            _put(entries, path[:2], Node("lora", line), line)
    _put(entries, path, node, line)


def _kind(entries: Mapping[str, Entry]) -> Any:
    """The name of ``training.update``, where it is given."""
    update = _plain(Node(entries, 1))
    for name in (LORA[0], "update"):
        update = update.get(name) if isinstance(update, dict) else None
    return update.get("kind") if isinstance(update, dict) else update


def _put(entries: dict[str, Entry], path: Sequence[str], node: Node, line: int) -> None:
    *above, last = path
    for name in above:
        inner = entries[name].node.value if name in entries else None
        if isinstance(inner, str):  # a component's name alone
            inner = {"kind": Entry(entries[name].line, entries[name].node)}
        entries[name] = Entry(line, Node(dict(inner) if isinstance(inner, dict) else {}, line))
        entries = entries[name].node.value
    entries[last] = Entry(line, node)


def _on_line(node: Node, line: int) -> Node:
    """The node with everything in it on one line."""
    value = node.value
    if isinstance(value, dict):
        value = {key: Entry(line, _on_line(entry.node, line)) for key, entry in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_on_line(item, line) for item in value)
    return Node(value, line)


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(entry.node) for key, entry in node.value.items()}
    return [_plain(item) for item in node.value] if isinstance(node.value, tuple) else node.value


def _line(node: Node, place: Place) -> int:
    """The line of a setting; if the file does not have it, the line of the section it belongs to."""
    line = node.line
    for part in place:
        if isinstance(node.value, dict) and part in node.value:
            line, node = node.value[part].line, node.value[part].node
        elif isinstance(node.value, tuple) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.line
        else:
            break
    return line
