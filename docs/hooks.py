"""Pages of the site that are written from the code while it is built, so that they cannot be out of date.

mkdocs calls :func:`on_files`, and :func:`on_page_markdown` for each page. ``methods.md`` comes from the registry of
merge methods, ``training.md`` from the settings classes and the recipes that ship, ``recipes.md`` from what routines,
objectives and passes say of themselves, ``changelog.md`` and ``contributing.md`` from the files of the repository.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightops.discovery import described_fields

ROOT = Path(__file__).parents[1]
PACKAGE = "weightops.recipes"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    pages = {
        "methods.md": methods_page(),
        "training.md": training_page(),
        "recipes.md": recipes_page(),
        "contributing.md": repository_page("CONTRIBUTING.md"),
        "changelog.md": repository_page("CHANGELOG.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def repository_page(name: str) -> str:
    """A page of the repository's root; its links to pages in docs/ hold on the site."""
    return (ROOT / name).read_text("utf-8").replace("](docs/", "](")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ to a page that the site has of its own."""
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")


# --- merge methods ---------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """Every merge method: what it does, its parameters, its source."""
    from weightops.ops import methods

    every = list(methods())
    overview = table(("method", "what it does"), [(f"[{m.name}](#{m.name})", plain(m.summary)) for m in every])
    head = (
        "# Merge methods\n\nWritten from the methods' own signatures and docstrings; `weightops methods show NAME` "
        "prints the same. A parameter with * may differ from model to model.\n"
    )
    return "\n\n".join([head, overview, *(_method(method) for method in every)]) + "\n"


def _method(method: Any) -> str:
    about = (inspect.getdoc(method.function) or "").split("\n\nArgs:")[0]
    least, most = method.models
    takes = f"{least} to {most}" if most is not None else f"{least} or more"
    base = "needed" if method.needs_base else "optional"
    rows = [
        (f"`{p.name}`{'*' * p.per_model}", _kind(p), "required" if p.required else f"`{p.default}`", p.help)
        for p in method.parameters
    ]
    parameters = table(("parameter", "type", "default", ""), rows) if rows else "No parameters."
    facts = f"Models: {takes}. Base model: {base}. Source: {_source(method.paper)}."
    return f"## {method.name}\n\n{plain(about)}\n\n{facts}\n\n{parameters}"


def _kind(parameter: Any) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    allowed = getattr(parameter, "range", None)
    return parameter.kind if allowed is None else f"{parameter.kind} {allowed}"


def _source(paper: str) -> str:
    return f"[arXiv {paper}](https://arxiv.org/abs/{paper})" if paper[:4].isdigit() else paper


# --- training --------------------------------------------------------------------------------------------------------


def training_page() -> str:
    """Every routine with its fields, the settings they share, and the recipes that ship."""
    from weightops.recipes.catalog import shipped, summary

    routines = list(_routines())
    classes = settings_classes([cls for _, cls in routines])
    recipes = table(("recipe", "what it makes"), [(f"`{name}`", summary(file)) for name, file in shipped().items()])
    parts = [
        (ROOT / "docs" / "training-head.txt").read_text("utf-8").strip(),
        "## Recipes that ship\n\n`weightops recipes copy NAME FILE` writes one as a file of your own.\n\n" + recipes,
    ]
    for name, cls in routines:
        parts.append(f"## `recipe: {name}`\n\n{_settings(cls)}")
    for cls in classes:
        if cls not in [routine for _, routine in routines]:
            parts.append(f"## {cls.__name__}\n\n{_settings(cls)}")
    return "\n\n".join(parts) + "\n"


def _routines() -> Iterator[tuple[str, type]]:
    """The settings class of each routine, by the word that the key ``recipe`` names it with."""
    for module in _modules("routines"):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and name.endswith("Recipe"):
                yield module.__name__.rpartition(".")[2], cls


def _modules(room: str) -> Iterator[types.ModuleType]:
    package = importlib.import_module(f"{PACKAGE}.{room}")
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


def settings_classes(starts: list[type]) -> list[type]:
    """These classes and those of their fields, each once, outer ones first."""
    classes = list(starts)
    for cls in classes:  # grows while it is read
        for hint in typing.get_type_hints(cls, include_extras=True).values():
            classes += [each for each in _classes_in(hint) if each not in classes]
    return classes


def _classes_in(hint: Any) -> list[type]:
    """The settings classes that a type names; for a component, every class of its room."""
    if isinstance(hint, type) and _is_settings(hint):
        return [hint]
    rooms = [mark.room for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "room")]
    if rooms:
        return [
            cls
            for module in _modules(rooms[0])
            for cls in vars(module).values()
            if isinstance(cls, type) and cls.__module__ == module.__name__ and _is_settings(cls)
        ]
    return [cls for inner in typing.get_args(hint) for cls in _classes_in(inner)]


def _is_settings(cls: type) -> bool:
    fields = dataclasses.is_dataclass(cls) or hasattr(cls, "model_fields")
    return fields and cls.__module__.startswith(PACKAGE)


def _settings(cls: type) -> str:
    about, described = described_fields(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    rows = [
        (f"`{name}`", _type(hints[name]), _default(default), described.get(name, ""))
        for name, default in _fields(cls).items()
    ]
    return f"{plain(about)}\n\n" + (table(("field", "type", "default", ""), rows) if rows else "No fields.")


def _fields(cls: Any) -> dict[str, Any]:
    """Default of each field that a file can set; ``...`` where one is required."""
    if not dataclasses.is_dataclass(cls):
        return {
            name: ... if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in cls.model_fields.items()
        }
    return {
        field.name: (
            field.default
            if field.default is not dataclasses.MISSING
            else field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else ...
        )
        for field in dataclasses.fields(cls)
        if not field.metadata.get("runtime")
    }


def _default(value: Any) -> str:
    if value is ...:
        return "required"
    if dataclasses.is_dataclass(value) or hasattr(value, "model_fields"):
        changed = [f"{name}: {getattr(value, name)}" for name, default in _fields(type(value)).items()
                   if getattr(value, name) != default]  # fmt: skip
        return f"{type(value).__name__}" + (f" with `{', '.join(changed)}`" if changed else "")
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(hint: Any) -> str:
    """A type in the words of YAML, with the range where it has one.

    >>> _type(tuple[str, ...]), _type(typing.Literal["a", "b"] | None)
    ('list of text', '`a`, `b`')
    """
    metadata = getattr(hint, "__metadata__", None)
    if metadata is not None:
        rooms = [mark.room for mark in metadata if hasattr(mark, "room")]
        if rooms:
            names = [module.__name__.rpartition(".")[2] for module in _modules(rooms[0])]
            return ", ".join(f"`{name}`" for name in names)
        bounds = [text for mark in metadata for text in _bounds(mark)]
        return " ".join([_type(typing.get_args(hint)[0]), ", ".join(bounds)]).strip()
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in inner if one is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is tuple:
        size = "" if inner[-1] is ... else f"{len(inner)} "
        return f"list of {size}{_type(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if hint in words:
        return words[hint]
    return f"[{hint.__name__}](#{hint.__name__.lower()})" if _is_settings(hint) else "any"


def _bounds(mark: Any) -> Iterator[str]:
    """The range in an annotation, of pydantic's ``Field`` or of annotated-types."""
    for one in (mark, *getattr(mark, "metadata", ())):
        for name, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            bound = getattr(one, name, None)
            if isinstance(bound, int | float):
                yield f"{words} {bound:g}"


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipes_page() -> str:
    """Every routine, objective and pass: what it does, its papers, how far it is backed, and the page about it."""
    from weightops.recipes.catalog import BACKED, backing
    from weightops.recipes.floor.components import kinds

    def row(room: str, name: str) -> tuple[str, ...]:
        line, evidence = backing(room, name)
        papers = ", ".join(_source(paper) for paper in evidence.papers) or "common practice"
        return (f"[{name}]({evidence.page})" if evidence.page else f"`{name}`", line, papers, evidence.status)

    parts = [(ROOT / "docs" / "recipes-head.txt").read_text("utf-8").strip()]
    for room in BACKED:
        rows = [row(room, name) for name in kinds(room)]
        parts.append(f"## {room.capitalize()}\n\n" + table(("name", "what it does", "paper", "status"), rows))
    parts.append("## Recipes that ship\n\n" + table(("recipe", "what it makes", "routine", "objective"), _shipped()))
    return "\n\n".join(parts) + "\n"


def _shipped() -> list[tuple[str, ...]]:
    """Each recipe file that comes with weightops, with the routine and the objective that it names."""
    import yaml

    from weightops.recipes.catalog import read_file, shipped, summary

    rows = []
    for name, file in shipped().items():
        keys = yaml.safe_load(read_file(file))
        objective = keys.get("objective", "")
        kind = objective["kind"] if isinstance(objective, dict) else objective
        rows.append((f"`{name}`", summary(file), f"`{keys['recipe']}`", f"`{kind}`" if kind else ""))
    return rows


# --- words -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A docstring's text as Markdown: the marks that Sphinx reads become code."""
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text.split("\n>>>")[0])
    return text.replace("``", "`")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(plain(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)  # fmt: skip
