"""Reads the facts that weightops needs from a ``config.json``: the text model, its sizes, whether its head is tied.

All other modules use these functions, so a new key is one entry in one list. The functions take the JSON object as a
mapping and do not change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Keys of the text model inside a model of several parts; the first existing one is used. They may be nested.
TEXT_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")

#: Alternative keys of the text model, in order of preference.
LAYER_COUNTS: Final = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "decoder_layers", "num_decoder_layers"),
)
VOCABULARY_SIZES: Final = ("padded_vocab_size", "vocab_size", "n_vocab", "tgt_vocab_size")
MAX_POSITIONS: Final = (
    *("max_position_embeddings", "n_positions", "model_max_length", "context_length", "max_seq_len", "seq_length"),
)
TIED: Final = "tie_word_embeddings"

_DEEPEST: Final = 3
"""Most levels of nested parts that are followed; known models have two."""


def text_path(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that lead to the text model; empty if the config itself describes a text model.

    >>> text_path({"thinker_config": {"text_config": {"vocab_size": 8}}})
    ('thinker_config', 'text_config')
    """
    path: tuple[str, ...] = ()
    for _ in range(_DEEPEST):
        key = next((key for key in TEXT_PARTS if isinstance(config.get(key), Mapping)), None)
        if key is None:
            break
        path, config = (*path, key), config[key]
    return path


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the text model; the config itself if it has no such part."""
    for key in text_path(config):
        config = config[key]
    return config


def with_text_part(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its text part replaced.

    >>> with_text_part({"a": 1, "text_config": {"b": 2}}, {"b": 3})
    {'a': 1, 'text_config': {'b': 3}}
    """
    return _replaced(config, text_path(config), text)


def _replaced(config: Mapping[str, Any], path: tuple[str, ...], text: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, path[0]: _replaced(config[path[0]], path[1:], text)} if path else dict(text)


def layer_count_key(text: Mapping[str, Any]) -> str | None:
    """The key under which the config of a text model gives its number of layers."""
    return _key(text, LAYER_COUNTS)


def layer_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers of the text model, or ``None`` if the config does not give it."""
    return _size(config, LAYER_COUNTS)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of rows of the token embedding, or ``None`` if the config does not give it."""
    return _size(config, VOCABULARY_SIZES)


def max_positions(config: Mapping[str, Any]) -> int | None:
    """The most tokens that the text model can read, or ``None`` if the config does not give it."""
    return _size(config, MAX_POSITIONS)


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Whether the head is the token embedding; ``None`` if the config does not say (then its class has a default).

    The key of the whole model takes precedence over that of the text part, as in transformers.
    """
    return next((part[TIED] for part in (config, text_part(config)) if isinstance(part.get(TIED), bool)), None)


def _size(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """A size of the text model; some models give it outside the text part, too or only."""
    for part in (text_part(config), config):
        if (key := _key(part, keys)) is not None:
            return int(part[key])
    return None


def _key(part: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if type(part.get(key)) is int and part[key] > 0), None)
