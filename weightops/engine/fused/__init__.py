"""Fused merge methods, by family. Every module here is imported: a new method is one file."""

import importlib
import pkgutil

from .forms import FUSED, Fused, Results

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FUSED", "Fused", "Results"]
