"""What follows a vocabulary through a model: the tensors with a row a token, and the sizes in its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..io.safetensors import StoredTensor
from ..io.weights import Weights
from .groups import group_of


def vocabulary_tensors(source: Weights) -> list[StoredTensor]:
    """The matrices with a row a token: embeddings and an untied head."""
    found = [t for name, t in source.tensors.items() if group_of(name) in ("embedding", "head") and len(t.shape) == 2]
    sized = [tensor for tensor in found if tensor.shape[0] == vocabulary_size(source.config)]
    # without a size to go by, the longest: position embeddings are shorter
    longest = max((tensor.shape[0] for tensor in found), default=0)
    return sized or [tensor for tensor in found if tensor.shape[0] == longest]


def token_tensors(source: Weights) -> frozenset[str]:
    """The names of all tensors with a row a token, the head's bias among them."""
    matrices = {tensor.name: tensor.shape[0] for tensor in vocabulary_tensors(source)}
    rows = set(matrices.values())
    biases = (name for name, t in source.tensors.items() if len(t.shape) == 1 and t.shape[0] in rows)
    return frozenset((*matrices, *(name for name in biases if group_of(name) == "head")))


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """``vocab_size`` of the text model."""
    text = config.get("text_config")
    found = text.get("vocab_size") if isinstance(text, Mapping) else None
    found = config.get("vocab_size") if found is None else found
    return found if isinstance(found, int) else None


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The keys of a config to change for a vocabulary of ``rows``, wherever the size stands.

    A part with a vocabulary of its own, as an audio encoder may have, keeps it.

    >>> with_vocabulary({"vocab_size": 8, "text_config": {"vocab_size": 8}, "audio_config": {"vocab_size": 5}}, 9)
    {'vocab_size': 9, 'text_config': {'vocab_size': 9}}
    """
    old = vocabulary_size(config)
    changed = {key: value for key, value in _resized(config, old, rows).items() if value != config[key]}
    if "vocab_size" in config:
        return {**changed, "vocab_size": rows} if changed.get("vocab_size") is None else changed
    if old is None and config:  # left to the default of its class, which no longer holds
        text = config.get("text_config")
        return {"text_config": {**text, "vocab_size": rows}} if isinstance(text, Mapping) else {"vocab_size": rows}
    return changed


def _resized(config: Mapping[str, Any], old: int | None, rows: int) -> dict[str, Any]:
    return {
        key: _resized(value, old, rows)
        if isinstance(value, Mapping)
        else rows
        if key == "vocab_size" and value == old
        else value
        for key, value in config.items()
    }
