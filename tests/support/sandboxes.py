"""Whether programs can be run in the sandbox here."""

from __future__ import annotations

import pytest

from weightops.errors import WeightopsError
from weightops.recipes.sandbox.sandbox import run_sandboxed


def _reason() -> str:
    """Why the sandbox does not work on this machine; empty if it does."""
    try:
        run_sandboxed("")
    except WeightopsError as error:
        return str(error)
    return ""


REASON = _reason()
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON)
