"""Objectives and updates as a recipe names them, found by the name of their file.

The class ``NextToken`` in ``objectives/next_token.py`` is named ``next_token`` in YAML. Its fields are its parameters,
except those marked ``RUNTIME``, which have defaults and are filled in when training starts. So a new objective or
update is one new file, and nothing else is edited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightops.discovery import class_in, kinds_in

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "weightops.recipes"

RUNTIME: Final[Mapping[str, Any]] = {"runtime": True}
"""Metadata of a field that the model or the data decides, a token id for instance: it is no parameter in YAML."""


@dataclass(frozen=True)
class Component:
    """Marks the type of a settings field: YAML writes it as a name, or as ``{kind: NAME, parameter: value, ...}``.

    Attributes:
        room: Folder of ``recipes/`` with the classes to choose from.
    """

    room: str


def kinds(room: str) -> tuple[str, ...]:
    """The names in a folder of ``recipes/``; nothing is imported.

    >>> "next_token" in kinds("objectives")
    True
    """
    return kinds_in(ROOT / room)


def component(room: str, kind: str) -> Any:
    """The class of a name.

    Raises:
        WeightopsError: the folder does not have the file, or the file does not have the class.
    """
    return class_in(f"{PACKAGE}.{room}", ROOT / room, kind, room.removesuffix("s"))


def kind_of(value: object) -> str:
    """The name of a component's class in YAML.

    >>> kind_of(Component("objectives"))
    'component'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(value).__name__).lower()
