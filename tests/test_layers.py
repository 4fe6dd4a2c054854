"""Imports only go down: from floor to floor, and inside the ground floor from level to level."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Top to bottom; a module may import its own level's line only to the right, and every line below.
LEVELS = (
    ("cli",),
    ("recipes",),
    ("merged", "compose", "merge", "guard", "loading"),
    ("checkpoint",),
    ("expr",),
    ("save",),
    ("provenance", "modelcard"),
    ("engine",),
    ("ops",),
    ("vocabulary",),
    ("io",),
    ("rules", "place", "groups", "dtypes", "errors", "version"),
)
RANK = {name: (level, place) for level, names in enumerate(LEVELS) for place, name in enumerate(names)}

#: Floors and packages by the folder that holds them, as setup.cfg maps them.
FOLDERS = {"weightops": ("weightops",), "cli": ("weightops", "cli"), "recipes": ("weightops", "recipes")}

FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def module_of(file: Path) -> tuple[str, ...]:
    """A file's module, in parts; a package's ends in ``__init__``."""
    folder, *rest = file.relative_to(ROOT).with_suffix("").parts
    return (*FOLDERS[folder], *rest)


def imports(module: tuple[str, ...], source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and target of every import of ours in a module, wherever it stands in the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module[: len(module) - node.level] if node.level else ()
            start = (*start, *(node.module.split(".") if node.module else ()))
            targets = [(*start, alias.name) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target[0] == "weightops")


def faults(module: tuple[str, ...], source: str) -> list[str]:
    """A line for every import that goes up, sideways against the order, or to a module without a level."""
    if module == ("weightops", "__init__"):  # the face: it names everything, and imports it when it is asked for
        return []
    found = []
    for line, target in imports(module, source):
        here, there = module[1], target[1] if len(target) > 1 else "__init__"
        if there in ("__version__", "WeightopsError", "__init__"):
            found.append(f"{'.'.join(module)}:{line} imports the package's face; import the module itself")
        elif there not in RANK:
            found.append(f"{'.'.join(module)}:{line} imports {there}, which has no level here")
        elif here != there and RANK[here] >= RANK[there]:
            found.append(f"{'.'.join(module)}:{line} imports {'.'.join(target)}, which lies above it")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_goes_up(file):
    assert faults(module_of(file), file.read_text("utf-8")) == []


def test_every_module_has_a_level_and_every_level_a_module():
    assert {module_of(file)[1] for file in FILES} - {"__init__"} == set(RANK)


def test_the_packages_of_setup_cfg_are_the_folders():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    assert listed == {".".join(module_of(file)[:-1]) for file in FILES if file.name == "__init__.py"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("weightops.io.folder", "from ..engine.plan import Plan"),
        ("weightops.io.folder", "from .. import engine"),
        ("weightops.engine.plan", "def f():\n    from ..expr import lower"),
        ("weightops.errors", "from .io import folder"),
        ("weightops.expr", "import weightops.compose"),
        ("weightops.save", "from weightops.cli import main"),
        ("weightops.compose", "from .recipes.guard import run"),
        ("weightops.recipes.guard", "from ..cli.options import table"),
        ("weightops.guard.labels", "from ..compose import compose_guard"),
        ("weightops.groups", "from .place import Place"),
        ("weightops.engine.__init__", "from .. import cli"),
        ("weightops.expr", "from . import WeightopsError"),
        ("weightops.expr", "from .unheard import of"),
    ],
)
def test_an_import_that_goes_up_is_found(module, source):
    assert len(faults(tuple(module.split(".")), source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("weightops.cli.verify", "from ..provenance import verify\nfrom .options import table"),
        ("weightops.compose", "from .guard.labels import Label\nimport numpy\nfrom . import dtypes"),
        ("weightops.io.folder", "from .safetensors import read_header\nfrom ..errors import WeightopsError"),
        ("weightops.io.__init__", "from .folder import INDEX"),
    ],
)
def test_an_import_that_goes_down_is_fine(module, source):
    assert faults(tuple(module.split(".")), source) == []
