"""Fused merge methods, by family."""

from . import dare, della, sce, trim
from .forms import FUSED, Fused, Results

__all__ = ["FUSED", "Fused", "Results", "dare", "della", "sce", "trim"]
