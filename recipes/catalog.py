"""What can be trained, and the recipes that are shipped. Files are found by their folder: a new one edits nothing else.

* A routine is a module of ``routines/``. ``routines/sft.py`` holds a frozen dataclass of settings, ``SftRecipe``, and
  ``run(recipe, out, overwrite, *, trust_remote_code)``, which returns a ``Fitted``. The key ``recipe: sft`` of a
  YAML file names it. No key of a file lets code that came with a model run: ``trust_remote_code`` is the caller's.
  A routine that trains parts also holds ``train_part(training)``; see ``parts/part_training.py``.
* An objective is a module of ``objectives/``, an update one of ``updates/``: one class each, named after its file; see
  ``floor/components.py``, ``floor/objective.py``, ``floor/update.py``.
* A pass is a module of ``passes/``, a judge one of ``judges/``, a writer one of ``writers/``: one class each, named
  after its file; see ``writing/asks.py``.
* A way to disperse rows is a module of ``dispersing/``: one class, named after its file; see ``parts/dispersion.py``.
* A place where parts are trained is a module of ``launchers/``: one class, named after its file; see
  ``parts/part_training.py``.
* Modules of ``routines/``, ``objectives/`` and ``passes/`` have a constant ``EVIDENCE``, see ``floor/evidence.py``: how
  far what they do is backed. The first line of their docstring says what they do.
* A shipped recipe is a file ``configs/FAMILY/NAME.yaml``; its first line is a comment that says what it makes.

Listing names imports no module. Names are unique: of modules in the whole repository, of recipes over all families.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightops.discovery import class_name
from weightops.errors import WeightopsError
from weightops.io.small_files import read_small
from weightops.recipes.floor.components import PACKAGE, kinds
from weightops.recipes.floor.evidence import Evidence

ROOMS = ("routines", "objectives", "updates", "passes", "judges", "writers", "dispersing", "launchers")
BACKED = ("routines", "objectives", "passes")
"""Rooms whose modules say how far they are backed."""
FOLDER = Path(__file__).parent / "configs"


def routines() -> tuple[str, ...]:
    """Names of the routines: the values of the key ``recipe`` of a file."""
    return kinds("routines")


def settings_of(routine: str) -> Any:
    """The settings class of a routine."""
    return getattr(_module(routine), f"{class_name(routine)}Recipe")


def shipped() -> dict[str, Path]:
    """The recipe files that come with weightops, by name, family by family."""
    return {file.stem: file for file in sorted(FOLDER.glob("*/*.yaml"), key=lambda file: (file.parent.name, file.stem))}


def read_file(file: Path) -> str:
    """The text of a recipe.

    Raises:
        WeightopsError: it cannot be read.
    """
    try:
        return read_small(file).decode("utf-8")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise WeightopsError(f"{file}: {reason}; name a file, or one of {', '.join(shipped())}") from error
    except UnicodeDecodeError as error:
        raise WeightopsError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error


def summary(file: Path) -> str:
    """What a recipe makes: the comment on its first line."""
    return read_file(file).partition("\n")[0].lstrip("# ")


def find(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: A path, or the name of a shipped recipe.

    Raises:
        WeightopsError: it is neither.
    """
    file = Path(name)
    if file.suffix in (".yml", ".yaml") or file.is_file():
        return file
    try:
        return shipped()[name]
    except KeyError:
        raise WeightopsError(
            f"{name}: no such file, and no such shipped recipe; available: {', '.join(shipped())}"
        ) from None


def read(name: str, sets: Sequence[str] = (), *, sources: bool = False) -> Any:
    """The settings of a recipe.

    Args:
        name: A path, or the name of a shipped recipe.
        sets: ``key=value`` or ``key.key=value``; these override the file.
        sources: Also check that the files and folders it names exist.

    Raises:
        WeightopsError: everything that is wrong.
    """
    from weightops.recipes.floor.recipe_file import read_recipe

    file = find(name)
    if not sources:
        return read_recipe(read_file(file), str(file), routines(), settings_of, sets)
    from weightops.recipes.floor.sources import missing

    return read_recipe(read_file(file), str(file), routines(), settings_of, sets, missing)


def part_trainer(routine: str) -> Any:
    """The function of a routine that trains one part, for processes of their own.

    Raises:
        WeightopsError: no such routine, or one that has no parts.
    """
    if routine not in routines() or not hasattr(_module(routine), "train_part"):
        raise WeightopsError(f"{routine}: not a routine that trains parts")
    return _module(routine).train_part


def run(recipe: Any, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Any:
    """Train by a recipe and write the result to a folder.

    Args:
        trust_remote_code: Run the Python code in the folders of the models it names, where their files ask for it.
    """
    routine = importlib.import_module(type(recipe).__module__)
    return routine.run(recipe, out, overwrite, trust_remote_code=trust_remote_code)


def backing(room: str, name: str) -> tuple[str, Evidence]:
    """What a module does, in one line, and how far that is backed.

    Args:
        room: One of ``BACKED``.
        name: Of the module.
    """
    module = importlib.import_module(f"{PACKAGE}.{room}.{name}")
    return (module.__doc__ or "").partition("\n")[0], module.EVIDENCE


def _module(routine: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.routines.{routine}")
