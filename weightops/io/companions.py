"""The small files that go along with a model's weights: configuration, tokenizer, chat templates, code, licence.

Everything that copies, downloads or converts a model asks here, so that no way loses a file that another keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Endings of their names.
SUFFIXES: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".bpe", ".spm")
#: What the names of licences begin with, in small or capital letters.
LICENCES: Final = ("LICENSE", "LICENCE", "NOTICE")
#: The folder of chat templates beside the default one.
TEMPLATE_FOLDER: Final = "additional_chat_templates"
#: How a guard is asked. Arithmetic on a guard makes another model, so an output gets its own or none.
GUARD_CARD: Final = "guard.json"

_WEIGHT_INDEX: Final = ".index.json"
"""Says which file holds which tensor; it belongs to the files of weights, which are written anew."""


def is_companion(name: str) -> bool:
    """Whether a file of that name, directly in a model's folder, goes along with the model."""
    if name.endswith(_WEIGHT_INDEX):
        return False
    return name.endswith(SUFFIXES) or name.upper().startswith(LICENCES)


def companions(folder: Path) -> list[Path]:
    """The companion files of a model's folder, in order of name, templates in their own folder last."""
    files = [path for path in sorted(folder.iterdir()) if is_companion(path.name)]
    files += sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return [path for path in files if path.is_file()]


def download_patterns() -> Sequence[str]:
    """The same as patterns of file names, for the hub's client; they match weight indices too, which it must fetch."""
    spellings = [spelling for word in LICENCES for spelling in (word, word.capitalize(), word.lower())]
    return [*(f"*{suffix}" for suffix in SUFFIXES), *(f"{word}*" for word in spellings)]
