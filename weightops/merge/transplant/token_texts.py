"""What text a token means, so that tokens of different tokenizers can be matched.

A token is matched by the bytes of text that it decodes to, or by its role: the token that begins a text is ``<s>`` in
one vocabulary and ``<|begin_of_text|>`` in another. (mergekit 0.1.5 matches the written form of tokens, so between
byte-level and SentencePiece vocabularies only tokens in ASCII meet.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from ...io.folder import read_json
from ...io.tokenizer import SETTINGS
from ..tokens.model_tokens import ModelTokens

#: Settings that name the token of a role, in the order in which a token with several roles gets one.
ROLES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: How SentencePiece writes a space.
SPACE: Final = "▁"
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


def same_tokens(tokens: ModelTokens, others: ModelTokens) -> dict[int, int]:
    """For each token of one model that another has too, its number there: by role, else by text.

    Only tokens with a row count in ``others``.
    """
    roles = {role: others.with_row[token] for token, role in roles_of(others).items() if token in others.with_row}
    theirs = texts_of(others)
    by_text: dict[bytes, int] = {}
    for token, number in others.with_row.items():
        by_text.setdefault(theirs(token), number)
    ours, own_roles = texts_of(tokens), roles_of(tokens)
    matched = {}
    for token, number in tokens.ids.items():
        other = roles.get(own_roles.get(token, ""), by_text.get(ours(token)))
        if other is not None:
            matched[number] = other
    return matched


def roles_of(tokens: ModelTokens) -> dict[str, str]:
    """The role of each token that the tokenizer's settings name, one role each."""
    if tokens.source.folder is None:
        return {}
    settings = read_json(tokens.source.folder / SETTINGS)
    roles: dict[str, str] = {}
    for role in ROLES:
        named = settings.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        if isinstance(content, str) and content in tokens.ids:
            roles.setdefault(content, role)
    return roles


def texts_of(tokens: ModelTokens) -> Callable[[str], bytes]:
    """A function from a token of this tokenizer to the bytes of text that it decodes to."""
    document, added = tokens.document, tokens.added
    steps = [document.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    if _mentions(steps, "ByteLevel"):
        return lambda token: token.encode() if token in added else _from_byte_level(token)
    if document["model"].get("type") == "WordPiece":
        prefix = document["model"].get("continuing_subword_prefix") or "##"
        return lambda token: _from_word_piece(token, prefix, token in added)
    if _mentions(steps, "Metaspace") or SPACE in str(steps):
        return lambda token: token.encode() if token in added else _from_sentence_piece(token, tokens.ids)
    return str.encode


def _mentions(part: Any, kind: str) -> bool:
    """Whether a part of ``tokenizer.json``, or a part inside it, is of a type."""
    if isinstance(part, Mapping):
        return part.get("type") == kind or any(_mentions(value, kind) for value in part.values())
    return isinstance(part, list) and any(_mentions(value, kind) for value in part)


def _from_byte_level(token: str) -> bytes:
    """The bytes behind GPT-2's printable stand-ins; a token with other characters is text as it is."""
    table = _byte_level()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """Each byte by its stand-in: itself where it is printable, else characters from 256 on (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_sentence_piece(token: str, ids: Mapping[str, int]) -> bytes:
    """A leading or inner mark is a space; ``<0xE2>`` is a byte, unless the vocabulary has that byte as a character."""
    if match := _BYTE.fullmatch(token):
        byte = int(match[1], 16)
        return token.encode() if byte < 128 and chr(byte) in ids else bytes([byte])
    return token.replace(SPACE, " ").encode()


def _from_word_piece(token: str, prefix: str, added: bool) -> bytes:
    """A token without the mark of a word's continuation begins a word."""
    if added:
        return token.encode()
    return token[len(prefix) :].encode() if token.startswith(prefix) else f" {token}".encode()
