"""The pages that are written from the code name everything that the code has."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from weightops.discovery import described_fields
from weightops.ops import methods
from weightops.recipes.catalog import BACKED, backing, shipped
from weightops.recipes.floor.components import kinds

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(page: str, heading: str) -> str:
    """The text under a heading of the second level."""
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_method_and_parameter_is_on_the_methods_page(hooks):
    page = hooks.methods_page()
    for method in methods():
        text = section(page, method.name)
        for parameter in method.parameters:
            assert f"| `{parameter.name}`" in text, (method.name, parameter.name)


def test_every_field_of_every_routine_and_of_its_parts_is_on_the_training_page(hooks):
    page = hooks.training_page()
    routines = list(hooks._routines())
    assert len(routines) >= 2
    for word, cls in routines:
        for each in dataclasses.fields(cls):
            assert f"| `{each.name}` |" in section(page, f"`recipe: {word}`")
    for cls in hooks.settings_classes([cls for _, cls in routines])[len(routines) :]:
        for name in hooks._fields(cls):
            assert f"| `{name}` |" in section(page, cls.__name__)
    for name in shipped():
        assert f"| `{name}` |" in page


def test_every_routine_objective_pass_and_shipped_recipe_has_its_status_on_the_recipes_page(hooks):
    page = hooks.recipes_page()
    for room in BACKED:
        rows = section(page, room.capitalize()).splitlines()
        for name in kinds(room):
            line, evidence = backing(room, name)
            (row,) = [row for row in rows if row.startswith((f"| `{name}` |", f"| [{name}]("))]
            assert row.endswith(f"| {evidence.status} |")
            assert hooks.plain(line) in row
            assert all(paper in row for paper in evidence.papers)
    for name in shipped():
        assert f"| `{name}` |" in section(page, "Recipes that ship")


def test_every_field_is_described(hooks):
    for cls in hooks.settings_classes([cls for _, cls in hooks._routines()]):
        described = described_fields(cls)[1]
        assert set(hooks._fields(cls)) <= set(described), cls.__name__


@dataclass
class Inner:
    rank: int = 4


@dataclass
class Outer:
    """What it is.

    Attributes:
        share: Of the rows;
            on two lines.
        words: A choice.
        inner: Its parts.
        hidden: Filled in.
    """

    share: Annotated[float, type("Bound", (), {"ge": 0, "lt": 1})()]
    words: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=lambda: Inner(rank=8))
    hidden: int = field(default=0, metadata={"runtime": True})


def test_a_settings_class_becomes_a_table(hooks, monkeypatch):
    monkeypatch.setattr(hooks, "PACKAGE", __name__)
    assert hooks._settings(Outer).splitlines() == [
        "What it is.",
        "",
        "| field | type | default |  |",
        "| --- | --- | --- | --- |",
        "| `share` | number at least 0, below 1 | required | Of the rows; on two lines. |",
        "| `words` | `a`, `b` | `a` | A choice. |",
        "| `inner` | [Inner](#inner) | Inner with `rank: 8` | Its parts. |",
    ]


def test_a_pydantic_model_becomes_a_table_as_well(hooks, monkeypatch):
    pydantic = pytest.importorskip("pydantic")
    monkeypatch.setattr(hooks, "PACKAGE", __name__)
    model = pydantic.create_model("Model", share=(Annotated[float, pydantic.Field(ge=0, lt=1)], ...), count=(int, 3))
    model.__module__ = __name__
    rows = hooks._settings(model).splitlines()[-2:]
    assert rows == ["| `share` | number at least 0, below 1 | required |  |", "| `count` | whole number | `3` |  |"]
