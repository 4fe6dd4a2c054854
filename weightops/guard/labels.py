"""A guard's label rows: the embedding and head rows of the words it answers with.

A guard vector does not contain embeddings and head. If a guard was trained with new label tokens, what it learnt about
them is in those rows, and the composed model could not answer with its labels. This module finds the rows, and copies
them if the user asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import dtypes
from ..anatomy.groups import group_of
from ..anatomy.vocabulary import vocabulary_tensors
from ..engine.exact_reads import read_tensor
from ..engine.jobs import Patch
from ..errors import Message, Remedy, WeightopsError
from ..io.safetensors import StoredTensor
from ..io.tokenizer import tokenizer_of
from ..io.weights import Weights
from .card import NAME, GuardCard

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Label:
    """A label word, and its token in guard, base and target (``None`` if it is not a single token there)."""

    word: str
    guard: int
    base: int | None
    target: int | None


def words_to_copy(labels: str | Sequence[str], card: GuardCard | None) -> list[str]:
    """The words whose rows are copied: both labels of the guard's card if it has one, and none if none is named.

    Raises:
        WeightopsError: a word that the card does not name.
    """
    words = labels.split(",") if isinstance(labels, str) else labels
    words = [word.strip() for word in words if word.strip()]
    if not words or card is None:
        return words
    for word in words:
        if word not in card.labels:
            named = f"label {word!r} is not in the guard's {NAME}, which names {card.labels[0]!r} and "
            remedy = Remedy("copy the rows of these with {}", "labels", ",".join(card.labels))
            raise WeightopsError(Message(f"{named}{card.labels[1]!r}", remedy))
    return list(card.labels)


def find_labels(
    words: Sequence[str], guard: Weights, base: Weights, target: Weights, known: Mapping[str, int] | None = None
) -> list[Label]:
    """Find each label's token in the three vocabularies: first by the spelling of the guard's token, then by the word.

    Args:
        known: The guard's token of each word, from its card.

    Raises:
        WeightopsError: a tokenizer is missing, or a word is not a single token of the guard.
    """
    guard_tokenizer, *other_tokenizers = [tokenizer_of(source) for source in (guard, base, target)]
    labels = []
    for word in words:
        in_guard = (known or {}).get(word, token_of(guard_tokenizer, word))
        if in_guard is None or guard_tokenizer.id_to_token(in_guard) is None:
            raise WeightopsError(
                f"label {word!r} is not one token of {guard.spec}; use the labels that the guard was trained with"
            )
        spelling = guard_tokenizer.id_to_token(in_guard)
        in_base, in_target = (_same_token(other, spelling, word) for other in other_tokenizers)
        labels.append(Label(word, in_guard, in_base, in_target))
    return labels


def _same_token(tokenizer: Tokenizer, spelling: str | None, word: str) -> int | None:
    number = None if spelling is None else tokenizer.token_to_id(spelling)
    return token_of(tokenizer, word) if number is None else int(number)


def token_of(tokenizer: Tokenizer, word: str) -> int | None:
    """The token of a word: the bare word, or with a space before it, as in some vocabularies."""
    number = tokenizer.token_to_id(word)
    if number is not None:
        return int(number)
    for text in (word, f" {word}"):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) == 1 and not _unknown(tokenizer, encoded.ids[0], encoded.tokens[0]):
            return int(encoded.ids[0])
    return None


def _unknown(tokenizer: Tokenizer, number: int, token: str) -> bool:
    """Whether this is the token for unknown words; Unigram returns its number together with the original word."""
    spelling = tokenizer.id_to_token(number)
    return spelling != token or spelling == getattr(tokenizer.model, "unk_token", None)


def changed_rows(labels: Sequence[Label], guard: Weights, base: Weights) -> list[tuple[Label, str]]:
    """The label rows that the guard has learnt: (label, tensor) if guard and base differ or the base has no row."""
    tensors = vocabulary_tensors(guard)
    return [(label, t.name) for label in labels for t in tensors if _row_changed(label, t, base.tensors.get(t.name))]


def _row_changed(label: Label, tensor: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or label.base is None or label.base >= other.shape[0] or label.guard >= tensor.shape[0]:
        return True
    rows = (tensor, _row(tensor, label.guard)), (other, _row(other, label.base))
    return len({_rounded(stored, row, _narrower(tensor.dtype, other.dtype)) for stored, row in rows}) > 1


def _row(tensor: StoredTensor, number: int) -> bytes:
    """The bytes of one row."""
    width = tensor.count // tensor.shape[0]
    return read_tensor(tensor, number * width, width).tobytes()


def _narrower(one: str, other: str) -> str:
    """The narrower dtype of two files, in which rows can be compared that were rounded differently on saving."""
    return min(one, other, key=lambda dtype: (dtypes.BITS[dtype], dtype))


def _rounded(stored: StoredTensor, row: bytes, dtype: str) -> bytes:
    if stored.dtype == dtype or not {stored.dtype, dtype} <= set(dtypes.FLOATS):
        return row
    from ..engine import kernels

    return kernels.narrow(kernels.widen(np.frombuffer(row, np.uint8), stored.dtype), dtype).tobytes()


def label_patches(labels: Sequence[Label], guard: Weights, target: Weights) -> dict[str, tuple[Patch, ...]]:
    """The guard's label rows as patches of the target's tensors, by tensor name.

    Raises:
        WeightopsError: guard and target have rows of different width, or no embedding or head in common.
    """
    rows = {tensor.name: tensor for tensor in vocabulary_tensors(guard)}
    for name in rows:
        if group_of(name) == "head" and name not in target.tensors:
            raise WeightopsError(
                f"{name}: {guard.spec} has a separate head, but the head of {target.spec} is tied to its "
                "embedding, so label rows cannot be copied; untie the target first"
            )
    patches: dict[str, tuple[Patch, ...]] = {}
    for stored in vocabulary_tensors(target):
        tensor = rows.get(stored.name) or (_tied_head(rows) if group_of(stored.name) == "head" else None)
        if tensor is None:
            continue
        if stored.shape[1:] != tensor.shape[1:]:
            raise WeightopsError(
                f"{stored.name}: a row has {tensor.shape[1]} numbers in {guard.spec}, {stored.shape[1]} in "
                f"{target.spec}, so label rows cannot be copied"
            )
        patches[stored.name] = tuple(_row_patch(label, tensor) for label in labels if label.target is not None)
    if not patches:
        raise WeightopsError(
            f"{target.spec}: has no embedding or head in common with {guard.spec}, so label rows cannot be copied"
        )
    return patches


def _tied_head(rows: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The embedding of a guard whose head is tied to it."""
    return next(iter(rows.values())) if len(rows) == 1 else None


def _row_patch(label: Label, tensor: StoredTensor) -> Patch:
    length, width = tensor.shape
    if label.guard >= length:
        raise WeightopsError(
            f"label {label.word!r} is token {label.guard}, but {tensor.name} in {tensor.file} has {length} rows; "
            "check that the tokenizer belongs to the model"
        )
    assert label.target is not None
    return Patch(label.target * width, tensor, label.guard * width, width)


def add_missing(labels: Sequence[Label], target: Weights) -> tuple[list[Label], dict[str, bytes], int]:
    """Add a token for each label that the target does not have, after its last token.

    Returns:
        The labels with their tokens, the target's changed tokenizer files, and the rows that the vocabulary needs.
    """
    tokenizer = tokenizer_of(target)
    missing = [label.word for label in labels if label.target is None]
    if missing:
        from tokenizers import AddedToken

        tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in missing])
    placed = [Label(label.word, label.guard, label.base, token_of(tokenizer, label.word)) for label in labels]
    files = {"tokenizer.json": (tokenizer.to_str(pretty=True) + "\n").encode()} if missing else {}
    return placed, files, max(label.target + 1 for label in placed if label.target is not None)
