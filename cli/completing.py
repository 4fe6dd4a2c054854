"""What the shell is offered for names: recipes, merge methods, presets, and the keys of ``--set``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem


class RecipeType(click.ParamType):  # type: ignore[type-arg]
    """A recipe: a YAML file, or the name of one that is shipped."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.recipes.catalog import shipped

        return [*_starting(shipped(), incomplete), CompletionItem(incomplete, type="file")]


class MethodType(click.ParamType):  # type: ignore[type-arg]
    """A merge method, by name."""

    name = "method"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.ops import methods

        return _starting([method.name for method in methods()], incomplete)


class PresetType(click.ParamType):  # type: ignore[type-arg]
    """How to ask a guard, by the name of its family."""

    name = "preset"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.guard.presets import PRESETS

        return _starting(PRESETS, incomplete)


class SettingType(click.ParamType):  # type: ignore[type-arg]
    """``KEY=VALUE`` of a recipe: the keys of the routine that the recipe uses, and the values where they are few."""

    name = "setting"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        key, equals, value = incomplete.partition("=")
        typed = ctx.params.get("recipe") or ctx.params.get("file") or next(iter(ctx.args), "")
        settings = _settings(str(typed))
        if not equals:
            return _starting([f"{name}=" for name in settings], key)
        return [CompletionItem(f"{key}={name}") for name in settings.get(key, ()) if name.startswith(value)]


def _starting(names: Any, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _settings(recipe: str) -> dict[str, tuple[str, ...]]:
    """Every key of a recipe, dotted, with its values where they can be listed; of all routines without a recipe."""
    from weightops.errors import WeightopsError
    from weightops.recipes.catalog import find, read_file, routines, settings_of

    try:
        named = re.search(r"^recipe:\s*(\w+)", read_file(find(recipe)), re.MULTILINE)
    except WeightopsError:  # no such recipe yet: the command will say so
        named = None
    chosen = [named[1]] if named and named[1] in routines() else routines()
    keys: dict[str, tuple[str, ...]] = {"recipe": routines()}
    for routine in chosen:
        keys.update(_keys(settings_of(routine)))
    return keys


def _keys(settings: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The fields of a settings class with their values; those of a class inside it as ``field.key``."""
    from weightops.recipes.floor.components import Component

    annotations = get_type_hints(settings, include_extras=True)
    for name in (field.name for field in dataclasses.fields(settings)):
        nested = [
            part for part in _parts(annotations[name]) if isinstance(part, type) and dataclasses.is_dataclass(part)
        ]
        for part in nested:
            yield from ((f"{name}.{key}", values) for key, values in _keys(part))
        for mark in _parts(annotations[name]):
            if isinstance(mark, Component):
                yield from ((f"{name}.{key}", values) for key, values in _component_keys(mark.room))
        if not nested:
            yield name, _values(annotations[name])


def _component_keys(room: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """``kind``, and the parameters of every component of a folder of ``recipes/``."""
    from weightops.recipes.floor.components import RUNTIME, component, kinds

    yield "kind", kinds(room)
    for kind in kinds(room):
        yield from (
            (field.name, ()) for field in dataclasses.fields(component(room, kind)) if field.metadata != RUNTIME
        )


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, and the metadata of ``Annotated``."""
    yield annotation
    if hasattr(annotation, "__metadata__"):
        yield from (*_parts(annotation.__origin__), *annotation.__metadata__)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)


def _values(annotation: Any) -> tuple[str, ...]:
    """The values of a setting, where they are few: choices, true and false, the names of components."""
    from weightops.recipes.floor.components import Component, kinds

    for part in _parts(annotation):
        if isinstance(part, Component):
            return kinds(part.room)
        if get_origin(part) is Literal:
            return tuple(map(str, get_args(part)))
        if part is bool:
            return ("true", "false")
    return ()
