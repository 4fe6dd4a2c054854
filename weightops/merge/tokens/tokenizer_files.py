"""The files and config keys written with a vocabulary: the tokenizer, and the numbers of special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...anatomy.config_keys import text_part
from ...anatomy.vocabulary import with_vocabulary
from ...io.folder import read_json
from ...io.tokenizer import OLDER, SETTINGS, TOKENIZER, tokenizer_files
from ...io.weights import Weights
from .model_tokens import ModelTokens
from .union import OutputTokens

GENERATION = "generation_config.json"

#: Config keys whose token numbers belong to the tokenizer, not to the architecture.
_MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NUMBER = re.compile(r"token_(id|ids|index)$")


def files_of(output: OutputTokens) -> dict[str, bytes]:
    """The tokenizer's files, by name; if tokens were added, only files that include them."""
    files = tokenizer_files(output.home.source.folder)
    if output.document is None:
        return files
    kept = {name: data for name, data in files.items() if name not in OLDER and not name.endswith(".tiktoken")}
    kept[TOKENIZER] = output.document
    if SETTINGS in kept:
        settings = json.loads(kept[SETTINGS])
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {str(n): dict(flags) for n, flags in (output.added or {}).items()}
            kept[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return kept


class Numbers:
    """The token numbers in the reference's configs, translated to the output's vocabulary.

    Args:
        output: The output's tokenizer.
        before: The reference's tokens, if it has a tokenizer.
    """

    def __init__(self, output: OutputTokens, before: ModelTokens | None) -> None:
        self.tokens = {number: token for token, number in before.ids.items()} if before else {}
        self.ids = output.ids
        self.moved = output.home is not before
        self.home = output.home.source

    def config(self, reference: Weights, size: int) -> dict[str, Any]:
        """The keys of ``config.json`` to change: sizes, and numbers of tokens."""
        renumbered = self._renumbered(reference.config, self.home.config)
        resized = with_vocabulary({**reference.config, **renumbered}, size)
        return {**renumbered, **resized}

    def generation(self, reference: Weights) -> dict[str, bytes]:
        """``generation_config.json``, if token numbers in it change."""
        if reference.folder is None:
            return {}
        config = read_json(reference.folder / GENERATION)
        theirs = read_json(self.home.folder / GENERATION) if self.home.folder else {}
        changed = self._renumbered(config, theirs or self.home.config)
        if not changed:
            return {}
        return {GENERATION: (json.dumps({**config, **changed}, indent=2, ensure_ascii=False) + "\n").encode()}

    def _renumbered(self, config: Mapping[str, Any], home: Mapping[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        for key, value in config.items():
            if isinstance(value, Mapping):
                inner = home.get(key)
                new = self._renumbered(value, {**home, **inner} if isinstance(inner, Mapping) else home)
                changed |= {key: {**value, **new}} if new else {}
            elif _NUMBER.search(key) and (new_value := self._new(key, value, home)) != value:
                changed[key] = new_value
        return changed

    def _new(self, key: str, value: Any, home: Mapping[str, Any]) -> Any:
        theirs = {**text_part(home), **home}
        if self.moved and key in _MARKS:
            if theirs.get(key) is not None:
                return theirs[key]
            named = self._named(key)
            if named is not None:
                return named
        if isinstance(value, list):
            numbers = [self._translated(number) for number in value]
            return [number for number in numbers if number is not None]
        return self._translated(value)

    def _translated(self, number: Any) -> Any:
        token = self.tokens.get(number) if isinstance(number, int) else None
        if token is None or (token not in self.ids and not self.moved):
            return number
        return self.ids.get(token)

    def _named(self, key: str) -> int | None:
        """The number of the token that the tokenizer's settings give for a key such as ``bos_token_id``."""
        if self.home.folder is None:
            return None
        named = read_json(self.home.folder / SETTINGS).get(key.removesuffix("_id"))
        content = named.get("content") if isinstance(named, dict) else named
        return self.ids.get(content) if isinstance(content, str) else None
