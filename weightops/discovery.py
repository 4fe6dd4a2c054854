"""Classes found by the name of their file: ``NextToken`` lies in ``next_token.py``.

So one more of a kind is one more file, and nothing else is edited.
"""

from __future__ import annotations

import importlib
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
