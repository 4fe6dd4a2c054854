"""The tokens of the models of a merge: read once for each different tokenizer, every missing one reported together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...anatomy.config_keys import vocabulary_size
from ...anatomy.vocabulary import vocabulary_tensors
from ...errors import WeightopsError, attempt_all
from ...io.small_files import read_beside
from ...io.tokenizer import SETTINGS, TOKEN_FLAGS, TOKENIZER, has_tokenizer, tokenizer_of
from ...io.weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer


#: Rows of an embedding, and numbers of tokens. The largest vocabularies in use have about 260,000.
MOST_TOKENS = 1 << 24


@dataclass(frozen=True, eq=False)
class ModelTokens:
    """A model's tokenizer, seen from its embedding.

    Attributes:
        model: How the config names the model.
        rows: Rows of its embedding; ``None`` for a tokenizer without a model.
        ids: Each token's number, in order of number.
    """

    model: str
    source: Weights
    rows: int | None
    tokenizer: Tokenizer
    ids: Mapping[str, int]

    @cached_property
    def held(self) -> Mapping[str, int]:
        """The tokens with a row. A tokenizer may know more, to which the model has no embedding."""
        rows = self.rows
        return self.ids if rows is None else {token: number for token, number in self.ids.items() if number < rows}

    @cached_property
    def document(self) -> dict[str, Any]:
        """``tokenizer.json`` as the library writes it. Not to be changed."""
        written: dict[str, Any] = json.loads(self.tokenizer.to_str())
        return written

    @cached_property
    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """The flags of the tokens that stand beside the vocabulary, special ones among them, in order of number."""
        entries = sorted(self.document["added_tokens"], key=lambda entry: int(entry["id"]))
        return {entry["content"]: {flag: entry[flag] for flag in TOKEN_FLAGS} for entry in entries}


def embedding_rows(source: Weights) -> int | None:
    """The rows of a model's embedding, by its tensors, else by its config."""
    return next((tensor.shape[0] for tensor in vocabulary_tensors(source)), vocabulary_size(source.config))


def fingerprint(source: Weights) -> bytes | None:
    """The same for two models whose tokenizers are the same files; ``None`` without ``tokenizer.json``."""
    if source.folder is None or not (source.folder / TOKENIZER).exists():
        return None
    names = [name for name in (TOKENIZER, SETTINGS) if (source.folder / name).exists()]
    return b"".join(hashlib.sha256(read_beside(source.folder, name)).digest() for name in names)


def read_tokens(
    models: Mapping[str, Weights], needed: Iterable[str], *, trust_remote_code: bool = False
) -> dict[str, ModelTokens]:
    """The tokens of each needed model, and of each other one that has a tokenizer.

    Args:
        trust_remote_code: As for :func:`weightops.io.tokenizer.tokenizer_of`.

    Raises:
        WeightopsError: a needed tokenizer is missing, or one that is there cannot be read; all of them together.
    """
    needed = set(needed)
    read: dict[bytes | str, tuple[Tokenizer, Mapping[str, int]]] = {}
    wanted = [(model, source) for model, source in models.items() if model in needed or has_tokenizer(source)]
    found = attempt_all(partial(_read, model, source, read, trust_remote_code) for model, source in wanted)
    return {tokens.model: tokens for tokens in found}


def _read(
    model: str,
    source: Weights,
    read: dict[bytes | str, tuple[Tokenizer, Mapping[str, int]]],
    trust_remote_code: bool,
) -> ModelTokens:
    if source.folder is None:
        raise WeightopsError(f"{source.spec}: a bare file has no tokenizer; name the model's folder instead")
    key = fingerprint(source) or str(source.folder)
    if key not in read:
        tokenizer = tokenizer_of(source, trust_remote_code=trust_remote_code)
        ids = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: (item[1], item[0]))
        read[key] = tokenizer, dict(ids)
    rows, (_, numbers) = embedding_rows(source), read[key]
    if max(rows or 0, max(numbers.values(), default=0)) > MOST_TOKENS:
        raise WeightopsError(f"{source.spec}: its vocabulary has numbers above {MOST_TOKENS}; restore its tokenizer")
    return ModelTokens(model, source, rows, *read[key])


def tokenizer_only(spec: str) -> Weights:
    """A folder that is named as ``tokenizer_source`` and is none of the merged models.

    Raises:
        WeightopsError: there is no such folder.
    """
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise WeightopsError(f"tokenizer {spec!r}: no such folder; name a merged model, union, base or a local folder")
    return Weights(spec, {}, folder)
