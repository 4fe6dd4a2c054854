"""The catalogue finds what is there by itself, and everything in it keeps the conventions it states."""

import re
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest

from weightops.discovery import class_name
from weightops.errors import WeightopsError
from weightops.recipes.catalog import (
    BACKED,
    FOLDER,
    ROOMS,
    backing,
    find,
    read_file,
    routines,
    settings_of,
    shipped,
    summary,
)
from weightops.recipes.floor.components import component, kind_of, kinds
from weightops.recipes.floor.evidence import Status
from weightops.recipes.floor.objective import Objective

COMPONENTS = [(room, kind) for room in ("objectives", "updates") for kind in kinds(room)]


@pytest.mark.parametrize("routine", routines())
def test_a_routine_is_a_frozen_dataclass_of_settings_and_a_run(routine):
    settings = settings_of(routine)
    assert is_dataclass(settings)
    assert settings.__dataclass_params__.frozen
    assert list(signature(sys.modules[settings.__module__].run).parameters) == [
        "recipe",
        "out",
        "overwrite",
        "trust_remote_code",
    ]


@pytest.mark.parametrize(("room", "kind"), COMPONENTS)
def test_an_objective_or_update_is_a_frozen_dataclass_named_after_its_file(room, kind):
    made = component(room, kind)
    assert made.__name__ == class_name(kind)
    assert made.__dataclass_params__.frozen
    runtime = [each for each in fields(made) if each.metadata.get("runtime")]
    assert all(each.default is not MISSING or each.default_factory is not MISSING for each in runtime)
    if all(each.default is not MISSING or each.default_factory is not MISSING for each in fields(made)):
        assert kind_of(made()) == kind


@pytest.mark.parametrize("kind", kinds("objectives"))
def test_an_objective_says_what_the_trainer_asks_of_it(kind):
    made = component("objectives", kind)
    assert Objective in made.__mro__
    assert made.reads
    methods = ("batch", "items", "loss")
    assert all(getattr(made, name) is not getattr(Objective, name) for name in methods)


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in BACKED for name in kinds(room)])
def test_what_trains_says_in_a_line_what_it_does_and_how_far_that_is_backed(room, name):
    line, evidence = backing(room, name)
    assert line.endswith(".")
    assert evidence.status in get_args(Status)
    assert all(re.fullmatch(r"\d{4}\.\d{5}", paper) for paper in evidence.papers)
    assert evidence.page is None or (Path(__file__).parents[2] / "docs" / evidence.page).is_file()


def test_names_are_unique_over_rooms_and_families():
    names = [name for room in ROOMS for name in kinds(room)]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    stems = [file.stem for file in FOLDER.glob("*/*.yaml")]
    assert sorted(stems) == sorted(shipped())


def test_every_shipped_recipe_begins_with_what_it_makes():
    assert all(read_file(file).startswith("# ") and summary(file).endswith(".") for file in shipped().values())


def test_what_is_not_there_is_refused_with_what_is(tmp_path):
    with pytest.raises(
        WeightopsError, match="nothing: no such file, and no such shipped recipe; available: .*guard-prefix"
    ):
        find("nothing")
    with pytest.raises(WeightopsError, match="no objective 'dpi'; available: .*label_decision, next_tok"):
        component("objectives", "dpi")
    (tmp_path / "latin.yml").write_bytes(b"recipe: \xe9")
    with pytest.raises(WeightopsError, match="not UTF-8 \\(byte 8\\)"):
        read_file(tmp_path / "latin.yml")


def test_looking_at_names_imports_neither_pydantic_nor_a_routine():
    code = "import sys; from weightops.recipes import catalog as c; c.shipped(); c.routines(); [c.summary(f) for f in "
    code += "c.shipped().values()]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numba", "numpy", "pydantic", "transformers", "yaml"}
    assert not [name for name in loaded if name.startswith("weightops.recipes.routines")]


def test_a_new_routine_objective_and_recipe_are_files_and_nothing_else(tmp_path):
    """In a copy of the training floor: the three files, and the catalogue lists, reads and checks them."""
    import shutil

    root = Path(__file__).parents[2]
    for folder, name in (("weightops", "weightops"), ("recipes", "weightops/recipes"), ("cli", "weightops/cli")):
        shutil.copytree(root / folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    floor = tmp_path / "weightops/recipes"
    (floor / "objectives/squared.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import Annotated\n"
        "from pydantic import Field\n"
        "from weightops.recipes.floor.objective import Objective\n"
        "@dataclass(frozen=True)\n"
        "class Squared(Objective):\n"
        "    weight: Annotated[float, Field(gt=0)] = 1.0\n"
    )
    (floor / "routines/square.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from typing import Annotated\n"
        "from weightops.recipes.floor.components import Component, component\n"
        "from weightops.recipes.floor.objective import Objective\n"
        "@dataclass(frozen=True)\n"
        "class SquareRecipe:\n"
        "    objective: Annotated[Objective, Component('objectives')] = field(\n"
        "        default_factory=lambda: component('objectives', 'squared')())\n"
        "def run(recipe, out, overwrite=False, *, trust_remote_code=False):\n"
        "    return recipe.objective.weight\n"
    )
    (floor / "configs/square").mkdir()
    (floor / "configs/square/square-two.yaml").write_text(
        "# Two squares.\nrecipe: square\nobjective: {kind: squared, weight: 2}\n"
    )
    code = (
        "from weightops.recipes import catalog as c; r = c.read('square-two', ['objective.weight=3']); "
        "print(c.run(r, None), 'square-two' in c.shipped(), 'squared' in c.kinds('objectives'))\n"
        "try: c.read('square-two', ['objective.weight=-1', 'objective.wieght=1'])\n"
        "except Exception as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0] == "3.0 True True"
    assert lines[1:] == [
        "set objective.weight=-1: objective.weight: must be above 0; found -1",
        "set objective.wieght=1: unknown key 'wieght' (did you mean 'weight'?)",
    ]
