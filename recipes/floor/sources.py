"""Whether the models and files that a recipe names exist, without opening any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from weightops.io.gguf import ALIASES
from weightops.io.hub import is_hub_id
from weightops.recipes.floor.checking import Fault, Place, dotted
from weightops.recipes.floor.settings import MODEL, Data

NOT_CHECKED = "rows, weights and chat templates, training.freeze against the model, the values of training.arguments"
"""What shows only when training starts."""


@dataclass(frozen=True)
class NamedSource:
    """A model, file or data set that a recipe names.

    Attributes:
        place: The setting that names it.
        state: What is known about it, with its name.
        missing: Whether it is known not to exist.
    """

    place: Place
    state: str
    missing: bool = False


def sources(recipe: Any) -> list[NamedSource]:
    """Every model, file and data set that a recipe names."""
    return list(_sources(recipe, ()))


def missing(recipe: Any) -> list[Fault]:
    """A fault for each thing that a recipe names and that does not exist."""
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
        return NamedSource(place, f"{spec} is a model that a Python package carries; it was not opened")
    if spec and path.is_dir():
        if (path / "config.json").exists() or (path / "adapter_config.json").exists():
            return NamedSource(place, f"{spec} is a model's folder; its weights were not read")
        return NamedSource(place, f"{spec} does not have a config.json; name a model's folder", missing=True)
    if spec and path.exists():
        return NamedSource(
            place, f"{spec} is a file; name the folder with the model's config and tokenizer", missing=True
        )
    if is_hub_id(spec):
        return NamedSource(
            place, f"{spec} is not a local folder, so it is taken as a model on the hub; the hub was not contacted"
        )
    return NamedSource(place, f"{spec}: no such folder; write org/name for a hub model", missing=True)


def _data(data: Data, place: Place) -> Iterator[NamedSource]:
    for number, file in enumerate(data.files):
        if Path(file).is_file():
            yield NamedSource((*place, "files", number), f"{file} is a file; its rows were not read")
        else:
            yield NamedSource(
                (*place, "files", number), f"{file}: no such file; set data.files to your files", missing=True
            )
    if data.hub:
        yield NamedSource((*place, "hub"), f"{data.hub} is a data set on the hub; the hub was not contacted")
