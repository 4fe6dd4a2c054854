"""Loads a user's own merge methods from a Python file, without a package or a fork."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..errors import WeightopsError
from .registry import methods


def load_plugin(file: Path) -> None:
    """Run a Python file that registers merge methods with ``@weightops.operator``.

    The file is code and runs with your permissions: load only files that you trust.

    Raises:
        WeightopsError: the file cannot be read or run, or registers no method.
    """
    before = {method.name: method for method in methods()}
    spec = importlib.util.spec_from_file_location(f"weightops_plugin_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise WeightopsError(f"{file}: not a Python file; a plugin is a .py file with @operator functions")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except WeightopsError:
        raise
    except Exception as error:
        raise WeightopsError(f"{file}: the plugin fails with {type(error).__name__}: {error}; correct it") from error
    if all(before.get(method.name) is method for method in methods()):
        raise WeightopsError(f"{file}: registers no merge method; mark a function with @weightops.operator(...)")
