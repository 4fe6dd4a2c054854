"""A guard's label rows: the embedding and head rows of the words it answers with.

A guard vector leaves embeddings and head out. A guard that was trained with new label tokens has learnt them in just
those rows, so the composed model could not say its labels: the rows are found here, and copied when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.jobs import Patch
from ..errors import WeightopsError
from ..groups import group_of
from ..io.safetensors import StoredTensor
from ..io.weights import Weights
from ..provenance import read_row

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Label:
    """A label word, and its token in the guard, the base and the target (``None``: not one token there)."""

    word: str
    guard: int
    base: int | None
    target: int | None


def find_labels(words: Sequence[str], guard: Weights, base: Weights, target: Weights) -> list[Label]:
    """Each label's token in the three vocabularies.

    Raises:
        WeightopsError: a tokenizer is missing, or a word is not one token of the guard.
    """
    tokenizers = [tokenizer_of(source) for source in (guard, base, target)]
    labels = []
    for word in words:
        in_guard, in_base, in_target = (token_of(tokenizer, word) for tokenizer in tokenizers)
        if in_guard is None:
            raise WeightopsError(
                f"label {word!r} is not one token of {guard.spec}; name the labels as the guard was trained with them"
            )
        labels.append(Label(word, in_guard, in_base, in_target))
    return labels


def tokenizer_of(source: Weights) -> Tokenizer:
    """The fast tokenizer of a model folder.

    Raises:
        WeightopsError: there is no ``tokenizer.json``, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = (source.folder or Path(source.spec)) / "tokenizer.json"
    if not file.exists():
        raise WeightopsError(f"{file}: missing; labels are found in tokenizer.json, save the model's tokenizer there")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise WeightopsError(f"{file}: not a tokenizer ({error}); download it again") from error


def token_of(tokenizer: Tokenizer, word: str) -> int | None:
    """The token of a word: as it is, or with the space before it that some vocabularies want."""
    known = tokenizer.token_to_id(word)
    if known is not None:
        return int(known)
    for text in (word, f" {word}"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) == 1:
            return int(ids[0])
    return None


def vocabulary_tensors(source: Weights) -> list[StoredTensor]:
    """The tensors with a row a token: embeddings and an untied head."""
    found = [t for name, t in source.tensors.items() if group_of(name) in ("embedding", "head") and len(t.shape) == 2]
    longest = max((tensor.shape[0] for tensor in found), default=0)
    return [tensor for tensor in found if tensor.shape[0] == longest]  # position embeddings are shorter


def changed_rows(labels: Sequence[Label], guard: Weights, base: Weights) -> list[tuple[Label, str]]:
    """The labels whose rows the guard has learnt: (label, tensor) where guard and base differ, or the base has none."""
    tensors = vocabulary_tensors(guard)
    return [(label, t.name) for label in labels for t in tensors if _row_changed(label, t, base.tensors.get(t.name))]


def _row_changed(label: Label, tensor: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or label.base is None or label.base >= other.shape[0] or label.guard >= tensor.shape[0]:
        return True
    return read_row(tensor, label.guard) != read_row(other, label.base)


def label_patches(labels: Sequence[Label], guard: Weights, target: Weights) -> dict[str, tuple[Patch, ...]]:
    """The guard's label rows as patches of the target's tensors, by tensor name.

    Raises:
        WeightopsError: guard and target have rows of different width, or no such tensor in common.
    """
    patches: dict[str, tuple[Patch, ...]] = {}
    for tensor in vocabulary_tensors(guard):
        mine = target.tensors.get(tensor.name)
        if mine is None:
            continue
        if mine.shape[1:] != tensor.shape[1:]:
            raise WeightopsError(
                f"{tensor.name}: rows of {tensor.shape[1]} in {guard.spec}, {mine.shape[1]} in "
                f"{target.spec}; label rows cannot be copied"
            )
        width = tensor.shape[1]
        patches[tensor.name] = tuple(
            Patch(label.target * width, tensor, label.guard * width, width)
            for label in labels
            if label.target is not None
        )
    if not patches:
        raise WeightopsError(
            f"{target.spec}: no embedding or head in common with {guard.spec}; label rows cannot be copied"
        )
    return patches


def add_missing(labels: Sequence[Label], target: Weights) -> tuple[list[Label], dict[str, bytes], int]:
    """Give labels that the target does not know a token of their own, after its last one.

    Returns:
        The labels with their tokens, the target's tokenizer files with them added, and the rows the vocabulary needs.
    """
    tokenizer = tokenizer_of(target)
    missing = [label.word for label in labels if label.target is None]
    if missing:
        from tokenizers import AddedToken

        tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in missing])
    placed = [Label(label.word, label.guard, label.base, token_of(tokenizer, label.word)) for label in labels]
    files = {"tokenizer.json": (tokenizer.to_str(pretty=True) + "\n").encode()} if missing else {}
    return placed, files, max(label.target + 1 for label in placed if label.target is not None)


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The keys of a config to change for a vocabulary of ``rows``, wherever the size stands."""
    changed: dict[str, Any] = {"vocab_size": rows} if "vocab_size" in config else {}
    if "vocab_size" in (config.get("text_config") or {}):
        changed["text_config"] = {**config["text_config"], "vocab_size": rows}
    return changed
