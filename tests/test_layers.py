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
    ("soup",),
    ("merge", "guard", "adapters", "data_merging", "sorted", "sparse"),
    ("layerwise",),
    ("algebra",),
    ("output",),
    ("engine",),
    ("ops",),
    ("anatomy",),
    ("rows", "io"),
    ("discovery", "extras", "dtypes", "errors", "version"),
)
RANK = {name: (level, place) for level, names in enumerate(LEVELS) for place, name in enumerate(names)}

#: The rooms of the training floor, top to bottom. Rooms of one line never import each other.
RECIPE_LEVELS = (
    ("part_worker",), ("catalog",), ("routines",), ("dispersing", "launchers"), ("parts",),
    ("objectives", "passes", "updates", "judges", "writers"), ("sparsity",), ("writing",), ("data",), ("floor",),
    ("sandbox",),
)  # fmt: skip
RECIPE_RANK = {name: level for level, names in enumerate(RECIPE_LEVELS) for name in names}

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
    if module in (("weightops", "__init__"), ("weightops", "__main__")):  # the doors: Python's face, the command line
        return []
    problems = []
    for line, target in imports(module, source):
        where, name = f"{'.'.join(module)}:{line}", ".".join(target)
        here, there = module[1], target[1] if len(target) > 1 else "__init__"
        if there in ("__version__", "WeightopsError", "__init__"):
            problems.append(f"{where} imports the package's face; import the module itself")
        elif there not in RANK:
            problems.append(f"{where} imports {there}, which has no level here")
        elif here != there and RANK[here] >= RANK[there]:
            problems.append(f"{where} imports {name}, which lies above it")
        elif here == there == "recipes" and len(module) > 2 and len(target) > 2:
            problems += recipe_faults(where, module, target)
    return problems


def recipe_faults(where: str, module: tuple[str, ...], target: tuple[str, ...]) -> list[str]:
    """The same inside the training floor: an objective or a pass knows neither its like nor the trainer."""
    here, there = module[2], target[2]
    if here in ("objectives", "passes") and target[2:4] == ("floor", "trainer"):
        return [f"{where} imports the trainer; an objective or a pass must not know it"]
    if here in ("objectives", "passes") and here == there:
        return [f"{where} imports {'.'.join(target)}; objectives and passes do not import each other"]
    if here in RECIPE_RANK and there in RECIPE_RANK and here != there and RECIPE_RANK[here] >= RECIPE_RANK[there]:
        return [f"{where} imports {'.'.join(target)}, which lies above it"]
    return []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_goes_up(file):
    assert faults(module_of(file), file.read_text("utf-8")) == []


def test_every_module_has_a_level_and_every_level_a_module():
    assert {module_of(file)[1] for file in FILES} - {"__init__", "__main__"} == set(RANK)


def test_the_packages_of_setup_cfg_are_the_folders():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    assert listed == {".".join(module_of(file)[:-1]) for file in FILES if file.name == "__init__.py"}


def test_tools_can_follow_every_import_of_the_upper_floors():
    """Through the mapping of setup.cfg they follow only absolute imports."""
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        if module_of(file)[1] in ("cli", "recipes")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_no_two_modules_share_a_name():
    """Except where the name is the point: a command after what it runs, a fused form after its method."""
    modules = [module_of(file) for file in FILES if file.name != "__init__.py"]
    names = [module[-1] for module in modules if module[1] != "cli" and "fused" not in module]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_two_public_classes_share_a_name():
    """A reader who meets a class by its name alone should know which one it is."""
    defined = [node.name for file in FILES for node in ast.walk(ast.parse(file.read_text("utf-8")))
               if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]  # fmt: skip
    assert sorted({name for name in defined if defined.count(name) > 1}) == []


def test_no_file_is_longer_than_400_lines():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("weightops.io.folder", "from ..engine.plan import Plan"),
        ("weightops.io.folder", "from .. import engine"),
        ("weightops.engine.plan", "def f():\n    from ..algebra.checkpoint import lower"),
        ("weightops.errors", "from .io import folder"),
        ("weightops.algebra.checkpoint", "import weightops.guard.compose"),
        ("weightops.output.save", "from weightops.cli import main"),
        ("weightops.guard.compose", "from ..recipes.routines.guard import run"),
        ("weightops.recipes.routines.guard", "from weightops.cli.options import table"),
        ("weightops.guard.labels", "from ..merge.build import build"),
        ("weightops.dtypes", "from .errors import WeightopsError\nfrom .io import folder"),
        ("weightops.engine.__init__", "from .. import cli"),
        ("weightops.algebra.checkpoint", "from .. import WeightopsError"),
        ("weightops.algebra.checkpoint", "from ..unheard import of"),
        ("weightops.recipes.objectives.next_token", "from weightops.recipes.floor.trainer import fit"),
        ("weightops.recipes.objectives.next_token", "from weightops.recipes.objectives.label_decision import x"),
        ("weightops.recipes.data.prefixes", "from weightops.recipes.objectives.next_token import NextToken"),
        ("weightops.recipes.floor.trainer", "from weightops.recipes.routines import guard"),
        ("weightops.recipes.floor.settings", "from weightops.recipes.data.source import load_rows"),
    ],
)
def test_an_import_that_goes_up_is_found(module, source):
    assert len(faults(tuple(module.split(".")), source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("weightops.cli.verify", "from weightops.output.provenance import verify"),
        ("weightops.guard.compose", "from .labels import Label\nimport numpy\nfrom .. import dtypes"),
        ("weightops.io.folder", "from .safetensors import read_header\nfrom ..errors import WeightopsError"),
        ("weightops.io.__init__", "from .folder import INDEX"),
        ("weightops.recipes.routines.guard", "from weightops.recipes.objectives.next_token import NextToken"),
        ("weightops.recipes.objectives.next_token", "from weightops.recipes.floor.objective import Row"),
    ],
)
def test_an_import_that_goes_down_is_fine(module, source):
    assert faults(tuple(module.split(".")), source) == []
