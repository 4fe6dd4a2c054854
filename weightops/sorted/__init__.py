"""Models whose first layers are models of their own: cut and compared with the whole, and decoded with early exits.

>>> from weightops.sorted import Plain, SelfSpeculative, generate
>>> SelfSpeculative(exits=[6], draft=3)
SelfSpeculative(exits=[6], draft=3, longest=8, vocabulary=8192)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoding import ConfidentExits, Generated, Plain, SelfSpeculative, generate
    from .prompts import prompt_tokens
    from .sampling import Sampling

__all__ = ["ConfidentExits", "Generated", "Plain", "Sampling", "SelfSpeculative", "generate", "prompt_tokens"]

_HOMES = {"prompt_tokens": "prompts", "Sampling": "sampling"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line answers before torch is loaded."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES.get(name, 'decoding')}", __name__), name)
