"""Merge methods. Every module here is imported, so a new method is one file with an ``@operator`` function."""

import importlib
import pkgutil

from ..anatomy.place import Place
from .draw import Draw
from .lines import lines_scale
from .registry import Operator, find, methods, operator
from .signature import Parameter, PerModel, Range

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Draw", "Operator", "Parameter", "PerModel", "Place", "Range", "find", "lines_scale", "methods", "operator"]
