"""Readers of single values of a merge file: each takes a node and adds its problems to ``faults``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ...dtypes import FP8_BLOCK, FROM_TORCH
from ...errors import WeightopsError, short
from ...io.faults import Faults
from ...io.yaml_lines import Entry, Node
from ...ops.registry import methods, nearest
from ..tokens.chat_template import TEMPLATES
from .schema import reference

T = TypeVar("T")


def read_key(
    entries: Mapping[str, Entry], key: str, read: Callable[[Node, Faults], T | None], faults: Faults
) -> T | None:
    """The value of a key; an explicit null counts as an absent key."""
    if key not in entries or entries[key].node.value is None:
        return None
    return read(entries[key].node, faults)


#: Most entries of one list: models, slices, sources, filters, gradient points. A merge of 100 models is large.
MOST_ENTRIES = 1_000


def items(node: Node, what: str, read: Callable[[Node, Faults], T | None], faults: Faults) -> tuple[T, ...]:
    if not isinstance(node.value, tuple) or not node.value:
        faults.add(node.line, f"{what} needs a list with at least one entry")
        return ()
    if too_many(node, what, faults):
        return ()
    values = (read(item, faults) for item in node.value)
    return tuple(value for value in values if value is not None)


def too_many(node: Node, what: str, faults: Faults, most: int = MOST_ENTRIES) -> bool:
    """Whether a list or mapping has too many entries; if so, adds a fault."""
    if len(node.value) <= most:
        return False
    faults.add(node.line, f"{what} has {len(node.value):,} entries, the limit is {most:,}")
    return True


def mapping(node: Node, what: str, faults: Faults) -> dict[str, Entry] | None:
    if isinstance(node.value, dict):
        return node.value
    faults.add(node.line, f"{what} must be keys with values")
    return None


def ignore_unknown(entries: Mapping[str, Entry], known: tuple[str, ...], faults: Faults) -> None:
    """Note the keys that are not known, with the place they belong to, or the nearest known key."""
    for key, entry in entries.items():
        if key not in known:
            hint = _belongs(key, known) or nearest(key, known) or f"; available: {', '.join(known)}"
            faults.ignored(entry.line, f"unknown key {key!r} has no effect{hint}")


#: Keys that are often put in a wrong place, and where they belong.
_BELONGS = {
    "pad_to_multiple_of": "write it under tokenizer",
    "random_seed": "give the seed to the command",
    "revision": "write the model as NAME@REVISION",
    "adapter": "write the model as NAME+ADAPTER",
    "lora": "write the model as NAME+ADAPTER",
}


def _belongs(key: str, known: tuple[str, ...]) -> str:
    """A hint for a key that is known in another place, or an empty string."""
    if key in _BELONGS:
        return f"; {_BELONGS[key]}"
    parameters = {parameter.name for method in methods() for parameter in method.parameters}
    return "; write it under parameters" if key in parameters and "parameters" in known else ""


def text(node: Node, faults: Faults) -> str | None:
    if isinstance(node.value, str) and node.value:
        return node.value
    faults.add(node.line, f"{_shown(node)} is not text; put it in quotes")
    return None


#: Most UTF-8 bytes of a document's name; a step's folder and its staging folder use it.
MOST_NAME = 100


def document_name(node: Node, faults: Faults) -> str | None:
    """A name that can be a folder's name. It must not start with a dot, as our own hidden folders do."""
    name = text(node, faults)
    if name is None:
        return None
    shown = repr(name[:40])
    if any(mark in name for mark in "@+"):
        faults.add(node.line, f"name {shown} must not contain @ or +, which mark a revision and an adapter")
    elif not name.isprintable() or any(mark in name for mark in "/\\") or name[0] == "." or name != name.strip():
        faults.add(
            node.line,
            f"name {shown} is used as a folder's name; remove /, \\, control characters, a leading dot, outer spaces",
        )
    elif len(name.encode()) > MOST_NAME:
        faults.add(node.line, f"name {shown} has {len(name.encode())} bytes; shorten it to at most {MOST_NAME}")
    else:
        return name
    return None


def model_name(node: Node, faults: Faults) -> str | None:
    """A model as text; mergekit's long form ({model: {path, revision}, lora: {path}}) becomes the short one."""
    written = _long_model(node, faults) if isinstance(node.value, dict) else text(node, faults)
    if written is None:
        return None
    try:
        reference(written)
    except WeightopsError as error:
        faults.add(node.line, error.problems[0])
        return None
    return written


def _long_model(node: Node, faults: Faults) -> str | None:
    ignore_unknown(node.value, ("model", "lora", "override_architecture"), faults)  # the last has no effect here
    parts = [read_key(node.value, key, _model_path, faults) for key in ("model", "lora")]
    if parts[0] is None:
        faults.add(node.line, "model is missing")
        return None
    return "+".join(part for part in parts if part)


def _model_path(node: Node, faults: Faults) -> str | None:
    if not isinstance(node.value, dict):
        return text(node, faults)
    ignore_unknown(node.value, ("path", "revision"), faults)
    path, revision = (read_key(node.value, key, text, faults) for key in ("path", "revision"))
    return f"{path}@{revision}" if path and revision else path


def dtype_name(node: Node, faults: Faults) -> str | None:
    name = str(node.value).removeprefix("torch.")
    if name in FROM_TORCH:
        return name
    hint = nearest(name, FROM_TORCH) or f"; it is one of {', '.join(FROM_TORCH)}"
    faults.add(node.line, f"unknown dtype {node.value!r}{hint}")
    return None


def out_dtype_name(node: Node, faults: Faults) -> str | None:
    """The dtype of what is written, which may be a layout in 8 bits."""
    return FP8_BLOCK if node.value == FP8_BLOCK else dtype_name(node, faults)


def chat_template(node: Node, faults: Faults) -> str | None:
    template = text(node, faults)
    if template and template not in ("auto", *TEMPLATES) and (len(template) < 20 or "{" not in template):
        faults.add(node.line, f"chat_template is auto, one of {', '.join(sorted(TEMPLATES))}, or a Jinja template")
    return template


#: Merges compute in fp32, whose largest number is slightly above this.
MOST_NUMBER = 1e38


def number(node: Node, faults: Faults) -> float | None:
    if type(node.value) in (int, float) and abs(node.value) < MOST_NUMBER:
        return float(node.value)
    faults.add(node.line, f"{_shown(node)} must be a finite number")
    return None


def flag(node: Node, faults: Faults) -> bool | None:
    if not isinstance(node.value, bool):
        faults.add(node.line, f"{_shown(node)} must be true or false")
        return None
    return node.value


def index(node: Node, faults: Faults) -> int | None:
    if type(node.value) is int and node.value >= 0:
        return node.value
    faults.add(node.line, f"{_shown(node)} must be a whole number, at least 0")
    return None


#: Largest ``pad_to_multiple_of``; GPUs gain from multiples of up to 512.
MOST_PADDING = 1 << 16


def multiple(node: Node, faults: Faults) -> int | None:
    if type(node.value) is int and 1 <= node.value <= MOST_PADDING:
        return node.value
    faults.add(node.line, f"{_shown(node)} must be a whole number from 1 to {MOST_PADDING}")
    return None


def _shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    return "a list" if isinstance(node.value, tuple) else short(repr(node.value))
