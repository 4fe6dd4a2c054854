"""Merge methods of a user's own, from a Python file: no package, no fork."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..errors import WeightopsError
from .registry import methods


def load_plugin(file: Path) -> None:
    """Run a Python file that registers merge methods with ``@weightops.operator``.

    The file is code and runs with your rights: load only what you would run.

    Raises:
        WeightopsError: it cannot be read or run, or registers nothing.
    """
    before = {method.name: method for method in methods()}
    spec = importlib.util.spec_from_file_location(f"weightops_plugin_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise WeightopsError(f"{file}: not a Python file; a plugin is a .py file with @operator functions")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module they stand in
    try:
        spec.loader.exec_module(module)
    except WeightopsError:
        raise
    except Exception as error:
        raise WeightopsError(f"{file}: {type(error).__name__}: {error}; the plugin does not run") from error
    if all(before.get(method.name) is method for method in methods()):
        raise WeightopsError(f"{file}: registers no merge method; mark a function with @weightops.operator(...)")
