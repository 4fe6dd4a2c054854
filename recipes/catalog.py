"""What can be trained, and the recipes that are shipped: found by where a file is, so a new one edits nothing else.

* A routine is a module of ``routines/``. ``routines/sft.py`` holds a frozen dataclass of settings, ``SftRecipe``, and
  ``run(recipe, out, overwrite, *, trust_remote_code)``, which returns what was trained. The key ``recipe: sft`` of a
  YAML file names it. No key of a file lets code that came with a model run: ``trust_remote_code`` is the caller's.
* An objective is a module of ``objectives/``, an update one of ``updates/``: one class each, named after its file; see
  ``floor/components.py``, ``floor/objective.py``, ``floor/update.py``.
* A pass is a module of ``passes/``: functions from rows to rows.
* A shipped recipe is a file ``configs/FAMILY/NAME.yaml``; its first line is a comment that says what it makes.

Looking at these names imports none of them. Names are unique: of modules over the whole house, of shipped recipes over
all families.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightops.errors import WeightopsError
from weightops.recipes.floor.components import PACKAGE, class_name, kinds

ROOMS = ("routines", "objectives", "updates", "passes")
FOLDER = Path(__file__).parent / "configs"


def routines() -> tuple[str, ...]:
    """What the key ``recipe`` of a file can say."""
    return kinds("routines")


def settings_of(routine: str) -> Any:
    """The settings class of a routine."""
    return getattr(_module(routine), f"{class_name(routine)}Recipe")


def shipped() -> dict[str, Path]:
    """The files that come with weightops, by name, family by family."""
    return {file.stem: file for file in sorted(FOLDER.glob("*/*.yaml"), key=lambda file: (file.parent.name, file.stem))}


def read_file(file: Path) -> str:
    """The text of a recipe.

    Raises:
        WeightopsError: it cannot be read.
    """
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); `weightops recipes list`") from error
    except UnicodeDecodeError as error:
        raise WeightopsError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error


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
        raise WeightopsError(f"{name}: no such file, and no such recipe; available: {', '.join(shipped())}") from None


def read(name: str, sets: Sequence[str] = (), *, sources: bool = False) -> Any:
    """A recipe by name or file, with ``key=value`` over what it says.

    Args:
        name: A path, or the name of one that is shipped.
        sets: ``key=value`` or ``key.key=value``.
        sources: Also check that the files and folders it names are there.

    Raises:
        WeightopsError: with everything that is wrong.
    """
    from weightops.recipes.floor.recipe_file import read_recipe

    file = find(name)
    if not sources:
        return read_recipe(read_file(file), str(file), routines(), settings_of, sets)
    from weightops.recipes.floor.sources import missing

    return read_recipe(read_file(file), str(file), routines(), settings_of, sets, missing)


def run(recipe: Any, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Any:
    """Train as a recipe says.

    Args:
        trust_remote_code: Run the Python code in the folders of the models it names, where their files ask for it.
    """
    routine = importlib.import_module(type(recipe).__module__)
    return routine.run(recipe, out, overwrite, trust_remote_code=trust_remote_code)


def _module(routine: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.routines.{routine}")
