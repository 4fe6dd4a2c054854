"""Packages that only some features need, and that an extra of weightops installs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .errors import WeightopsError


def needed(module: str, package: str, extra: str, load: Callable[[str], Any] = importlib.import_module) -> Any:
    """Import a module that an extra installs.

    Raises:
        WeightopsError: the package is not installed.
    """
    try:
        return load(module)
    except ModuleNotFoundError as error:
        raise WeightopsError(f"{package}: not installed; pip install 'weightops[{extra}]'") from error
