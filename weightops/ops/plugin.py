"""Merge methods of a user's own, from a Python file: no package, no fork."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import WeightopsError
from .registry import methods


def load_plugin(file: Path) -> None:
    """Run a Python file that registers merge methods with ``@weightops.operator``.

    The file is code and runs with your rights: load only what you would run.

    Raises:
        WeightopsError: it cannot be read or run, or registers nothing.
    """
    before = {method.name for method in methods()}
    spec = importlib.util.spec_from_file_location(f"weightops_plugin_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise WeightopsError(f"{file}: not a Python file; --plugin takes a .py file with @operator functions")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except WeightopsError:
        raise
    except Exception as error:
        raise WeightopsError(f"{file}: {type(error).__name__}: {error}; the plugin does not run") from error
    if {method.name for method in methods()} == before:
        raise WeightopsError(f"{file}: registers no merge method; mark a function with @weightops.operator(...)")
