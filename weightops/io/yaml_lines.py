"""YAML read safely, with the line of every key and value.

Only text, numbers, booleans, lists and mappings are constructed. The size of a document, with its aliases expanded, is
counted before anything is built, so that a file of a few hundred bytes cannot grow into gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import short
from .faults import Faults

#: Characters of one file; the reader takes about a second for 100,000.
MOST_CHARACTERS = 200_000
#: Values in one file, with aliases expanded. A merge of 100 models with a filter for each projection has about 5,000.
MOST_VALUES = 200_000
#: Levels of nesting. mergekit's schema needs about 12.
MOST_LEVELS = 64

#: Characters of a number. Longer ones take time that grows with the square of their digits.
MOST_DIGITS = 64

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = tuple(_PREFIX + kind for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_NUMBERS = (_PREFIX + "int", _PREFIX + "float")
_PLAIN = frozenset((*_SCALARS, *(_PREFIX + kind for kind in ("seq", "map", "merge", "value"))))


@dataclass(frozen=True)
class Node:
    """A value and the line it starts on.

    Attributes:
        value: A scalar, a tuple of nodes, or a dict from key to :class:`Entry`.
    """

    value: Any
    line: int


@dataclass(frozen=True)
class Entry:
    """The value of a mapping's key, and the line of the key."""

    line: int
    node: Node


class _RefusedError(Exception):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


def documents(text: str, faults: Faults) -> tuple[Node, ...]:
    """The documents of a YAML text, without empty ones. Problems are added to ``faults``."""
    if len(text) > MOST_CHARACTERS:
        faults.add(1, f"the file has {len(text):,} characters, the limit is {MOST_CHARACTERS:,}")
        return ()
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        faults.add(
            text.count("\n", 0, error.position) + 1, f"character {chr(error.character)!r} is not allowed in YAML"
        )
        return ()
    roots: list[Node] = []
    try:
        while loader.check_node():
            root = loader.get_node()
            if root is not None and root.tag != _PREFIX + "null":
                _refuse_large(root)
                roots.append(_convert(loader, root, faults))
    except _RefusedError as refused:
        faults.add(refused.line, refused.problem)
    except RecursionError:
        faults.add(1, f"the document is nested too deeply (at most {MOST_LEVELS} levels)")
    except yaml.YAMLError as error:
        faults.add(_line_of(error), f"not valid YAML: {_reason(error)}")
    finally:
        loader.dispose()
    return tuple(roots)


def only_document(text: str, faults: Faults, what: str) -> Node:
    """The document of a YAML text that has one; ``what`` is what the text is.

    Raises:
        WeightopsError: problems of the text, or another number of documents.
    """
    nodes = documents(text, faults)
    faults.raise_any()
    if len(nodes) != 1:
        faults.add(1, f"{len(nodes)} documents; {what} has one")
        faults.raise_any()
    return nodes[0]


def _line_of(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return int(mark.line) + 1 if mark else 1


def _reason(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error).replace("\n", " ")


def _start(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_large(root: yaml.Node) -> None:
    """Refuse a document that would be too large, too deep or endless with its aliases expanded."""
    sizes: dict[int, tuple[int, int]] = {}  # by identity: an aliased node is one object
    open_: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in open_:
            raise _RefusedError(_start(node), "an alias contains itself")
        if id(node) not in sizes:
            open_.add(id(node))
            inner = [measure(child) for child in _children(node)]
            open_.discard(id(node))
            sizes[id(node)] = (1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0))
        return sizes[id(node)]

    size, depth = measure(root)
    if size > MOST_VALUES:
        raise _RefusedError(
            _start(root), f"the document has more than {MOST_VALUES:,} values with its aliases expanded"
        )
    if depth > MOST_LEVELS:
        raise _RefusedError(_start(root), f"the document is nested too deeply (at most {MOST_LEVELS} levels)")


def _convert(loader: yaml.SafeLoader, node: yaml.Node, faults: Faults) -> Node:
    line = _start(node)
    if node.tag not in _PLAIN:
        faults.add(
            line, f"tag {node.tag.replace(_PREFIX, '!!')} is not allowed: a configuration contains only plain values"
        )
        return Node(None, line)
    if isinstance(node, yaml.MappingNode):
        return Node(_mapping(loader, node, faults), line)
    if isinstance(node, yaml.SequenceNode):
        return Node(tuple(_convert(loader, child, faults) for child in node.value), line)
    return Node(_scalar(loader, node, faults), line)


def _scalar(loader: yaml.SafeLoader, node: yaml.Node, faults: Faults) -> Any:
    if node.tag == _PREFIX + "timestamp":
        return node.value  # a name that looks like a date stays the text the user wrote
    try:
        node.value.encode()
        if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise ValueError
        return loader.construct_object(node)
    except (ValueError, ArithmeticError, LookupError, TypeError, yaml.YAMLError):
        faults.add(_start(node), f"cannot read the value {node.value[:40]!r}")
        return None


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, faults: Faults) -> dict[str, Entry]:
    _check_twice(node, faults)
    loader.flatten_mapping(node)
    entries: dict[str, Entry] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != _PREFIX + "str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a collection"
            faults.add(_start(key), f"key {short(repr(shown))} is not text; put it in quotes")
            continue
        if _scalar(loader, key, faults) is None:
            continue
        entries[key.value] = Entry(_start(key), _convert(loader, value, faults))
    return entries


def _check_twice(node: yaml.MappingNode, faults: Faults) -> None:
    """Report equal keys: YAML readers silently keep the last one, and we cannot know which one the user meant."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _PREFIX + "merge":
            continue
        if key.value in lines:
            first = f"first on line {lines[key.value]}"
            faults.ignored(_start(key), f"key {short(repr(key.value))} is listed twice ({first}); only the last counts")
        lines.setdefault(key.value, _start(key))
