"""The parts of a model that depend on its vocabulary size: tensors with a row for each token, and config keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..io.safetensors import StoredTensor
from ..io.weights import Weights
from .config_keys import VOCABULARY_SIZES, text_part, text_path, vocabulary_size, with_text_part
from .groups import group_of


def vocabulary_tensors(source: Weights) -> list[StoredTensor]:
    """The matrices with a row for each token: the embeddings, and the head if it is not tied."""
    matrices = [
        t for name, t in source.tensors.items() if len(t.shape) == 2 and group_of(name) in ("embedding", "head")
    ]
    sized = [tensor for tensor in matrices if tensor.shape[0] == vocabulary_size(source.config)]
    # without a size in the config, take the longest matrices: position tables are shorter
    longest = max((tensor.shape[0] for tensor in matrices), default=0)
    return sized or [tensor for tensor in matrices if tensor.shape[0] == longest]


def token_tensors(source: Weights) -> frozenset[str]:
    """The names of all tensors with one row, or (for a bias) one number, for each token."""
    matrices = {tensor.name: tensor.shape[0] for tensor in vocabulary_tensors(source)}
    rows = set(matrices.values())
    biases = (name for name, t in source.tensors.items() if len(t.shape) == 1 and t.shape[0] in rows)
    return frozenset((*matrices, *(name for name in biases if group_of(name) == "head")))


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config keys that change with a vocabulary of ``rows`` tokens, wherever the config gives its size.

    A part with a separate vocabulary, such as an audio encoder, keeps its size.

    >>> with_vocabulary({"vocab_size": 8, "text_config": {"vocab_size": 8}, "audio_config": {"vocab_size": 5}}, 9)
    {'vocab_size': 9, 'text_config': {'vocab_size': 9}}
    """
    old = vocabulary_size(config)
    changed = {key: value for key, value in _resized(config, old, rows).items() if value != config[key]}
    outside = [key for key in VOCABULARY_SIZES if key in config]
    if outside:
        return {**changed, **dict.fromkeys(outside, rows)}
    if old is None and config:  # the default of the config's class is no longer right
        text = {**text_part(config), "vocab_size": rows}
        key = next(iter(text_path(config)), "vocab_size")
        return {key: with_text_part(config, text)[key]}
    return changed


def _resized(config: Mapping[str, Any], old: int | None, rows: int) -> dict[str, Any]:
    return {
        key: _resized(value, old, rows)
        if isinstance(value, Mapping)
        else rows
        if key in VOCABULARY_SIZES and value == old
        else value
        for key, value in config.items()
    }
