"""Loads a user's own merge methods from a Python file, without a package or a fork."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..errors import WeightopsError
from .registry import Operator, methods

_PREFIX = "weightops_plugin_"


def load_plugin(file: Path) -> None:
    """Run a Python file that registers merge methods with ``@weightops.operator``.

    The file is code and runs with your permissions: load only files that you trust.

    Raises:
        WeightopsError: the file cannot be read or run, or registers no method.
    """
    before = {method.name: method for method in methods()}
    spec = importlib.util.spec_from_file_location(f"{_PREFIX}{file.stem}", file)
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


def plugin_of(method: Operator) -> Path | None:
    """The file that a method was loaded from, by which another process can load it too; ``None`` for ours.

    Raises:
        WeightopsError: only this process has the method.
    """
    name = method.function.__module__
    if name.startswith("weightops."):
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    if not name.startswith(_PREFIX) or file is None:
        raise WeightopsError(f"{method.name}: other processes cannot load this merge method; put it in a plugin's file")
    return Path(file).absolute()
