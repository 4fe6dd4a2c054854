"""The recipes that are shipped, and how one is found, read and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightops.errors import WeightopsError
from weightops.recipes.floor.recipe_file import read_file, read_recipe
from weightops.recipes.routines import guard, target

KINDS: dict[str, Any] = {"guard": guard, "target": target}
"""What the key ``recipe`` of a file can say: modules with a dataclass and a ``run``."""
CLASSES = {"guard": guard.GuardRecipe, "target": target.TargetRecipe}
FOLDER = Path(__file__).parent / "configs"


def shipped() -> dict[str, Path]:
    """The files that come with weightops, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*/*.yaml"))}


def summary(file: Path) -> str:
    """What a recipe is for: the comment on its first line."""
    return read_file(file).partition("\n")[0].lstrip("# ")


def find(name: str) -> Path:
    """A recipe's file: a path, or the name of one that is shipped.

    Raises:
        WeightopsError: neither.
    """
    file = Path(name)
    if file.suffix in (".yml", ".yaml") or file.is_file():
        return file
    try:
        return shipped()[name]
    except KeyError:
        raise WeightopsError(f"{name}: no such file, and no such recipe; there is {', '.join(shipped())}") from None


def read(name: str, sets: Sequence[str] = ()) -> Any:
    """A recipe by name or file, with ``key=value`` over what it says.

    Raises:
        WeightopsError: with everything that is wrong.
    """
    file = find(name)
    return read_recipe(read_file(file), str(file), CLASSES, sets)


def run(recipe: Any, out: Path, overwrite: bool = False) -> Any:
    """Train as a recipe says."""
    module = next(KINDS[kind] for kind, own in CLASSES.items() if isinstance(recipe, own))
    return module.run(recipe, out, overwrite)
