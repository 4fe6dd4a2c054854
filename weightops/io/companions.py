"""The small files that go along with a model's weights: configuration, tokenizer, chat templates, code, licence.

Copying, downloading and converting a model all use this list, so that none of them loses a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Endings of the names of these files.
SUFFIXES: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".bpe", ".spm")
#: How the names of licence files begin; case does not matter.
LICENCES: Final = ("LICENSE", "LICENCE", "NOTICE")
#: The folder with further chat templates, besides the default one.
TEMPLATE_FOLDER: Final = "additional_chat_templates"
#: How a guard is queried. Arithmetic on a guard makes a different model, so an output gets a new card or none.
GUARD_CARD: Final = "guard.json"

_WEIGHT_INDEX: Final = ".index.json"
"""Says which file contains which tensor. It is not copied, because an output gets new weight files."""


def is_companion(name: str) -> bool:
    """Whether a file with this name, directly in a model's folder, is copied along with the model."""
    if name.endswith(_WEIGHT_INDEX):
        return False
    return name.endswith(SUFFIXES) or name.upper().startswith(LICENCES)


def companions(folder: Path) -> list[Path]:
    """The companion files of a model's folder, sorted by name; the files of the template folder come last."""
    files = [path for path in sorted(folder.iterdir()) if is_companion(path.name)]
    files += sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return [path for path in files if path.is_file()]


def download_patterns() -> Sequence[str]:
    """The companion files as patterns for the hub's client. They also match weight indices, which a download needs."""
    spellings = [spelling for word in LICENCES for spelling in (word, word.capitalize(), word.lower())]
    return [*(f"*{suffix}" for suffix in SUFFIXES), *(f"{word}*" for word in spellings)]
