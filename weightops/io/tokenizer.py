"""A model folder's tokenizer: its files and its tokens. Only a folder without tokenizer.json needs transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import WeightopsError, short
from .companions import TEMPLATE_FOLDER
from .folder import read_json
from .quiet import quiet_transformers
from .remote_code import refused_code
from .small_files import read_beside
from .weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"

#: Vocabulary files in older formats; next to a ``tokenizer.json`` they repeat its content.
OLDER: Final = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("added_tokens.json", "tekken.json"),
)
#: The chat template; its place in older processors of transformers, which takes precedence; further named templates.
TEMPLATE: Final = "chat_template.jinja"
OLDER_TEMPLATE: Final = "chat_template.json"
TEMPLATES: Final = (TEMPLATE, OLDER_TEMPLATE, f"{TEMPLATE_FOLDER}/*.jinja")
#: Every file that belongs to a tokenizer, as patterns.
FILES: Final = (TOKENIZER, SETTINGS, "special_tokens_map.json", "*.tiktoken", *OLDER, *TEMPLATES)


def tokenizer_files(folder: Path | None) -> dict[str, bytes]:
    """The files of a folder that belong to its tokenizer, chat template included, by name."""
    if folder is None:
        return {}
    paths = sorted(path for pattern in FILES for path in folder.glob(pattern))
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return {name: read_beside(folder, name) for name in names}


def has_tokenizer(source: Weights) -> bool:
    """Whether :func:`tokenizer_of` can find a tokenizer in this folder."""
    folder = source.folder
    return folder is not None and ((folder / TOKENIZER).exists() or _convertible(folder))


def tokenizer_of(source: Weights, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model folder, with the tokens that only ``tokenizer_config.json`` adds.

    Args:
        trust_remote_code: Run the Python code in the folder, where there is no ``tokenizer.json`` and its files ask for
            the code.

    Raises:
        WeightopsError: the folder has no tokenizer, or the tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    folder = source.folder or Path(source.spec)
    file = folder / TOKENIZER
    if not file.exists():
        if _convertible(folder):
            return _converted(folder, trust_remote_code)
        remedy = f"save the model's tokenizer there: AutoTokenizer.from_pretrained(MODEL).save_pretrained('{folder}')"
        raise WeightopsError(f"{file}: missing; {remedy}")
    try:
        tokenizer = Tokenizer.from_buffer(read_beside(folder, TOKENIZER))
    except WeightopsError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise WeightopsError(f"{file}: not a tokenizer ({short(str(error), 200)}); download it again") from error
    _add_listed(tokenizer, folder)
    return tokenizer


def _add_listed(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that only ``tokenizer_config.json`` lists, as transformers does on loading."""
    listed = read_json(folder / SETTINGS).get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    from tokenizers import AddedToken

    entries = [(int(number), entry) for number, entry in listed.items() if number.isdigit() and isinstance(entry, dict)]
    for _, entry in sorted(entries, key=lambda pair: pair[0]):
        content = entry.get("content")
        if isinstance(content, str) and tokenizer.token_to_id(content) is None:
            flags: dict[str, Any] = {key: bool(value) for key, value in entry.items() if key in TOKEN_FLAGS}
            tokenizer.add_tokens([AddedToken(content, **flags)])


#: The settings of an added token, besides its text and number.
TOKEN_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _convertible(folder: Path) -> bool:
    return any((folder / name).exists() for name in OLDER[:5])


def _converted(folder: Path, trust_remote_code: bool) -> Tokenizer:
    """Convert an older vocabulary with transformers."""
    try:
        with quiet_transformers():
            auto = importlib.import_module("transformers").AutoTokenizer
            loaded = auto.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
            tokenizer: Tokenizer | None = getattr(loaded, "backend_tokenizer", None)
    except Exception as error:  # anything may happen in a conversion
        if code_refused := refused_code(folder, error):
            raise WeightopsError(code_refused) from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightopsError(f"{folder}: no {TOKENIZER}, and transformers cannot make one ({lines[0]})") from error
    if tokenizer is None:
        raise WeightopsError(
            f"{folder}: no {TOKENIZER}, and transformers has only a slow tokenizer for this model; add the file"
        )
    return tokenizer
