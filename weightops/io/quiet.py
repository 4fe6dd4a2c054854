"""Silences the log lines, warnings and progress bars of transformers, and of what it imports."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# transformers and PEFT import bitsandbytes where it is installed, and it then warns of a kernel that we never call.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Show only errors inside the block, then restore the user's settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = importlib.import_module("transformers.utils.logging")
        verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
        settings.set_verbosity_error()
        settings.disable_progress_bar()
        try:
            yield
        finally:
            settings.set_verbosity(verbosity)
            if bars:
                settings.enable_progress_bar()
