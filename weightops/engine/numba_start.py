"""Lets numba start without SciPy, which it imports for the BLAS that our kernels do not call."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def import_array_functions() -> None:
    """Import the module of numba that looks for a BLAS when it is imported, as it is before the first kernel runs.

    The search is left out there, a third of the time that the first kernel takes. It is made as always where a kernel
    of somebody else in this process calls a function of linear algebra. A numba with other insides is left as it is.
    """
    with suppress(ImportError, AttributeError):
        from numba.np import linalg

        modules: list[Any] = [linalg]
        search = linalg.ensure_blas
        linalg.ensure_blas = lambda: None
        try:
            from numba.np import arraymath

            modules.append(arraymath)
        finally:
            for module in modules:
                module.ensure_blas = search
