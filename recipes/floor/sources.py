"""Whether the models and files that a recipe names are there, without opening one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from weightops.io.gguf import ALIASES
from weightops.io.hub import is_hub_id
from weightops.recipes.floor.checking import Fault, Place, dotted
from weightops.recipes.floor.settings import MODEL, Data


@dataclass(frozen=True)
class NamedSource:
    """Something that a recipe names.

    Attributes:
        place: The setting.
        state: What is known of it, with its name.
        missing: Whether it is known not to be there.
    """

    place: Place
    state: str
    missing: bool = False


def sources(recipe: Any) -> list[NamedSource]:
    """Every model, file and data set that a recipe names."""
    return list(_sources(recipe, ()))


def missing(recipe: Any) -> list[Fault]:
    """What a recipe names and is not there."""
    return [Fault(each.place, f"{dotted(each.place)}: {each.state}") for each in sources(recipe) if each.missing]


def _sources(settings: Any, place: Place) -> Iterator[NamedSource]:
    if isinstance(settings, Data):
        yield from _data(settings, place)
        return
    hints = get_type_hints(type(settings), include_extras=True)
    for each in fields(settings):
        value, here = getattr(settings, each.name), (*place, each.name)
        if is_dataclass(value):
            yield from _sources(value, here)
        elif _is_model(hints[each.name]) and value is not None:
            yield from (_model(part, here) for part in _parts(str(value)))


def _is_model(hint: Any) -> bool:
    return hint is MODEL or any(_is_model(inner) for inner in (*get_args(hint), *getattr(hint, "__metadata__", ())))


def _parts(spec: str) -> list[str]:
    return [spec] if Path(spec).expanduser().exists() else spec.split("+", 1)


def _model(spec: str, place: Place) -> NamedSource:
    path = Path(spec).expanduser()
    if spec in ALIASES:
        return NamedSource(place, f"{spec} is an alias of a model in a package; its weights were not opened")
    if spec and path.is_dir():
        if (path / "config.json").exists() or (path / "adapter_config.json").exists():
            return NamedSource(place, f"{spec} is a model's folder; its weights were not opened")
        return NamedSource(place, f"{spec} has no config.json; name a model's folder", missing=True)
    if spec and path.exists():
        return NamedSource(
            place, f"{spec} is a file without config and tokenizer; name the model's folder", missing=True
        )
    if is_hub_id(spec):
        return NamedSource(place, f"{spec} is no folder here, so it is an id on the hub; that is not checked offline")
    return NamedSource(place, f"{spec}: no such folder; a hub model is written org/name", missing=True)


def _data(data: Data, place: Place) -> Iterator[NamedSource]:
    for number, file in enumerate(data.files):
        if Path(file).is_file():
            yield NamedSource((*place, "files", number), f"{file} is a file; its rows were not read")
        else:
            yield NamedSource((*place, "files", number), f"{file}: no such file; name yours", missing=True)
    if data.hub:
        yield NamedSource((*place, "hub"), f"{data.hub} is a data set on the hub; that is not checked offline")
