"""Classes found by the name of their file, and what their docstrings say of their fields.

``NextToken`` lies in ``next_token.py``, so one more of a kind is one more file, and nothing else is edited.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from .errors import WeightopsError


def kinds_in(folder: Path) -> tuple[str, ...]:
    """The names of a folder's modules; nothing is imported."""
    return tuple(sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")))


def class_in(package: str, folder: Path, kind: str, what: str) -> Any:
    """The class of a name.

    Args:
        package: The folder as Python imports it.
        what: What the folder's classes are called, in messages.

    Raises:
        WeightopsError: the folder does not have the file, or the file does not have the class.
    """
    if kind not in kinds_in(folder):
        raise WeightopsError(f"no {what} {kind!r}; available: {', '.join(kinds_in(folder))}")
    module, name = importlib.import_module(f"{package}.{kind}"), class_name(kind)
    if not hasattr(module, name):
        place = f"{folder.parent.name}/{folder.name}/{kind}.py"
        raise WeightopsError(f"{place}: does not have a class {name}; name the class after the file")
    return getattr(module, name)


def class_name(kind: str) -> str:
    """The class that a file holds.

    >>> class_name("next_token")
    'NextToken'
    """
    return "".join(word.capitalize() for word in kind.split("_"))


def described_fields(cls: type) -> tuple[str, dict[str, str]]:
    """What a docstring says before its sections, and its ``Attributes:``, by name."""
    about, _, listed = (inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    described: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        if not line.startswith("    "):
            if line.strip():
                break
            continue
        if line.startswith("        ") and name:
            described[name] += " " + line.strip()
        else:
            name, _, text = line.strip().partition(":")
            described[name] = text.strip()
    return about, described
