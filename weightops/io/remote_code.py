"""Python code in a model's folder, which transformers runs where a file of the folder asks for it under ``auto_map``.

It runs only where the user allowed it; nothing asks on a terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .folder import read_json

_ASKING: Final = ("config.json", "tokenizer_config.json")


def refused_code(folder: Path, error: Exception) -> str | None:
    """The problem line where transformers refused to load a folder because code of its own would have to run.

    Args:
        error: What transformers raised, called with ``trust_remote_code=False``.
    """
    if "trust_remote_code" not in str(error):
        return None
    asking = [name for name in _ASKING if read_json(folder / name).get("auto_map")]
    files = " and ".join(str(folder / name) for name in asking) or str(folder)
    return (
        f"{files}: auto_map asks to run Python code that came with the model; read that code first, and allow it with "
        "trust_remote_code only where you trust it"
    )
