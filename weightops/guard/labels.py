"""A guard's label rows: the embedding and head rows of the words it answers with.

A guard vector leaves embeddings and head out. A guard that was trained with new label tokens has learnt them in just
those rows, so the composed model could not say its labels: the rows are found here, and copied when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import dtypes
from ..anatomy.groups import group_of
from ..anatomy.vocabulary import vocabulary_tensors
from ..engine.jobs import Patch
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor, read_row
from ..io.tokenizer import tokenizer_of
from ..io.weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Label:
    """A label word, and its token in the guard, the base and the target (``None``: not one token there)."""

    word: str
    guard: int
    base: int | None
    target: int | None


def find_labels(
    words: Sequence[str], guard: Weights, base: Weights, target: Weights, known: Mapping[str, int] | None = None
) -> list[Label]:
    """Each label's token in the three vocabularies: the guard's own token, by its spelling, before the bare word.

    Args:
        known: The guard's token of a word, where its card says which.

    Raises:
        WeightopsError: a tokenizer is missing, or a word is not one token of the guard.
    """
    asked, *others = [tokenizer_of(source) for source in (guard, base, target)]
    labels = []
    for word in words:
        in_guard = (known or {}).get(word, token_of(asked, word))
        if in_guard is None or asked.id_to_token(in_guard) is None:
            raise WeightopsError(
                f"label {word!r} is not one token of {guard.spec}; name the labels as the guard was trained with them"
            )
        spelling = asked.id_to_token(in_guard)
        in_base, in_target = (_same_token(other, spelling, word) for other in others)
        labels.append(Label(word, in_guard, in_base, in_target))
    return labels


def _same_token(tokenizer: Tokenizer, spelling: str | None, word: str) -> int | None:
    known = None if spelling is None else tokenizer.token_to_id(spelling)
    return token_of(tokenizer, word) if known is None else int(known)


def token_of(tokenizer: Tokenizer, word: str) -> int | None:
    """The token of a word: as it is, or with the space before it that some vocabularies want."""
    known = tokenizer.token_to_id(word)
    if known is not None:
        return int(known)
    for text in (word, f" {word}"):
        found = tokenizer.encode(text, add_special_tokens=False)
        if len(found.ids) == 1 and not _unknown(tokenizer, found.ids[0], found.tokens[0]):
            return int(found.ids[0])
    return None


def _unknown(tokenizer: Tokenizer, number: int, token: str) -> bool:
    """Whether it is the token that stands for every unknown word; Unigram keeps the word itself beside its number."""
    known = tokenizer.id_to_token(number)
    return known != token or known == getattr(tokenizer.model, "unk_token", None)


def changed_rows(labels: Sequence[Label], guard: Weights, base: Weights) -> list[tuple[Label, str]]:
    """The labels whose rows the guard has learnt: (label, tensor) where guard and base differ, or the base has none."""
    tensors = vocabulary_tensors(guard)
    return [(label, t.name) for label in labels for t in tensors if _row_changed(label, t, base.tensors.get(t.name))]


def _row_changed(label: Label, tensor: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or label.base is None or label.base >= other.shape[0] or label.guard >= tensor.shape[0]:
        return True
    rows = (tensor, read_row(tensor, label.guard)), (other, read_row(other, label.base))
    return len({_rounded(stored, row, _narrower(tensor.dtype, other.dtype)) for stored, row in rows}) > 1


def _narrower(one: str, other: str) -> str:
    """The dtype in which two files can be compared that were rounded differently on their way to disk."""
    return min(one, other, key=lambda dtype: (dtypes.BITS[dtype], dtype))


def _rounded(stored: StoredTensor, row: bytes, dtype: str) -> bytes:
    if stored.dtype == dtype or not {stored.dtype, dtype} <= set(dtypes.FLOATS):
        return row
    from ..engine import kernels

    return kernels.narrow(kernels.widen(np.frombuffer(row, np.uint8), stored.dtype), dtype).tobytes()


def label_patches(labels: Sequence[Label], guard: Weights, target: Weights) -> dict[str, tuple[Patch, ...]]:
    """The guard's label rows as patches of the target's tensors, by tensor name.

    Raises:
        WeightopsError: guard and target have rows of different width, or no such tensor in common.
    """
    rows = {tensor.name: tensor for tensor in vocabulary_tensors(guard)}
    for name in rows:
        if group_of(name) == "head" and name not in target.tensors:
            raise WeightopsError(
                f"{name}: {guard.spec} has a head of its own, {target.spec} has one that is tied to "
                "its embedding; label "
                "rows cannot be copied, untie the target first"
            )
    patches: dict[str, tuple[Patch, ...]] = {}
    for mine in vocabulary_tensors(target):
        tensor = rows.get(mine.name) or (_tied_head(rows) if group_of(mine.name) == "head" else None)
        if tensor is None:
            continue
        if mine.shape[1:] != tensor.shape[1:]:
            raise WeightopsError(
                f"{mine.name}: rows of {tensor.shape[1]} in {guard.spec}, {mine.shape[1]} in "
                f"{target.spec}; label rows cannot be copied"
            )
        patches[mine.name] = tuple(_row_patch(label, tensor) for label in labels if label.target is not None)
    if not patches:
        raise WeightopsError(
            f"{target.spec}: no embedding or head in common with {guard.spec}; label rows cannot be copied"
        )
    return patches


def _tied_head(rows: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The embedding that a guard without a head of its own answers with."""
    return next(iter(rows.values())) if len(rows) == 1 else None


def _row_patch(label: Label, tensor: StoredTensor) -> Patch:
    length, width = tensor.shape
    if label.guard >= length:
        raise WeightopsError(
            f"label {label.word!r} is token {label.guard}, and {tensor.name} in {tensor.file} has {length} rows; is "
            "the tokenizer beside it its own?"
        )
    assert label.target is not None
    return Patch(label.target * width, tensor, label.guard * width, width)


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
