"""torch for the modules of this folder, imported by the first function that computes with it.

Importing torch takes longer than everything else that a merge does before it reads weights, and methods with a fused or
affine form never call their torch functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "torch"]

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:

    class _Later:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("torch"), name)

    torch = _Later()
    Tensor = Any  # for annotations only
