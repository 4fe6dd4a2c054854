"""Adds tokens to a tokenizer and writes it as ``tokenizer.json``.

Numbers follow mergekit: existing tokens keep theirs; then, model by model, the tokens that a model adds to the
vocabulary, in the order of their numbers in that model; then the added and special tokens of the models in the same
way; then tokens that only the config names. (mergekit takes a model's tokens in hash order, which differs every run.)

mergekit makes every new token an *added* token. Added tokens are cut out of a text before it is split into words:
with "he" from another vocabulary, "the" is split. Here a vocabulary's token goes into the vocabulary, together with
the merges that lead to it, so texts are split as before wherever no new token applies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import WeightopsError
from .model_tokens import ModelTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Flags of a token that only the config names: it is matched anywhere in a text.
_NAMED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


@dataclass(frozen=True, eq=False)
class OutputTokens:
    """The tokenizer of an output.

    Attributes:
        home: The model whose tokenizer it is, before tokens were added.
        ids: Each token's number, in order of number.
        document: ``tokenizer.json``; ``None`` if home's own files are used.
        added: Added tokens by number, with their flags; ``None`` if home's own files are used.
    """

    home: ModelTokens
    ids: Mapping[str, int]
    document: bytes | None = None
    added: Mapping[int, Mapping[str, Any]] | None = None
    notes: tuple[str, ...] = ()


def extend(home: ModelTokens, others: Sequence[ModelTokens], named: Sequence[str]) -> OutputTokens:
    """Add the tokens of other models, and named tokens, to a tokenizer.

    Args:
        home: The tokenizer to add to.
        others: Models whose tokens are all added.
        named: Further tokens.

    Raises:
        WeightopsError: the tokens cannot be added to the tokenizer.
    """
    others = [other for other in others if other.tokenizer is not home.tokenizer]
    if not others and all(token in home.ids for token in named):
        return OutputTokens(home, home.ids)
    dropped = set(home.ids) - set(home.with_row) if others else set()
    added = {token: flags for token, flags in home.added.items() if token not in dropped}
    for other in others:
        for token, flags in other.added.items():
            if token in other.with_row:
                added.setdefault(token, flags)
    ids = {token: number for token, number in home.ids.items() if token not in dropped}
    plain: dict[str, ModelTokens] = {}
    for other in others:
        for token in other.with_row:
            if token not in ids and token not in added:
                plain.setdefault(token, other)
    extra = {token: _NAMED for token in named if token not in ids and token not in plain and token not in added}
    added.update(extra)
    number = 1 + max(ids.values(), default=-1)
    for token in (*plain, *added):
        if token not in ids:
            ids[token], number = number, number + 1
    if len(ids) == len(home.ids) and not dropped and added.keys() == home.added.keys():
        return OutputTokens(home, home.ids)
    return _written(home, ids, plain, added, dropped)


def _written(
    home: ModelTokens,
    ids: Mapping[str, int],
    plain: Mapping[str, ModelTokens],
    added: Mapping[str, Mapping[str, Any]],
    dropped: set[str],
) -> OutputTokens:
    document: dict[str, Any] = json.loads(json.dumps(home.document))
    model, kind = document["model"], home.document["model"]["type"]
    ordered = sorted(added, key=lambda token: ids[token])
    document["added_tokens"] = [{"id": ids[token], "content": token, **added[token]} for token in ordered]
    if kind == "Unigram":
        model["vocab"] = _pieces(home, ids, plain)
    else:
        # include added tokens: on loading, those outside the vocabulary would be numbered from its length on
        model["vocab"] = {token: ids[token] for token in ids}
    if kind == "BPE":
        kept = [pair for pair in model["merges"] if not dropped & {*pair, _joined(pair, model)}] if dropped else None
        model["merges"] = [*(model["merges"] if kept is None else kept), *_merges(model, ids, plain)]
    data = json.dumps(document, ensure_ascii=False, indent=2).encode()
    _check(home, data, ids)
    flags = {ids[token]: {"content": token, **added[token]} for token in ordered}
    return OutputTokens(home, ids, data + b"\n", flags, tuple(_unreachable(kind, plain)))


def _merges(model: Mapping[str, Any], ids: Mapping[str, int], plain: Mapping[str, ModelTokens]) -> list[list[str]]:
    """The merges that make the new tokens, from the models that have them; existing merges stay before them."""
    merges = []
    for other in dict.fromkeys(plain.values()):
        theirs = other.document["model"]
        for pair in theirs.get("merges", ()):
            new = _joined(pair, theirs)
            if plain.get(new) is other and pair[0] in ids and pair[1] in ids and _joined(pair, model) == new:
                merges.append(list(pair))
    return merges


def _joined(pair: Sequence[str], model: Mapping[str, Any]) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return str(pair[0]) + str(pair[1]).removeprefix(prefix)


def _pieces(home: ModelTokens, ids: Mapping[str, int], plain: Mapping[str, ModelTokens]) -> list[list[Any]]:
    """The vocabulary of a unigram model: a list indexed by token number, so it must include added tokens."""
    scores = dict(home.document["model"]["vocab"])
    lowest = min(scores.values(), default=0.0)
    for other in dict.fromkeys(plain.values()):
        theirs = other.document["model"]
        if theirs["type"] == "Unigram":
            scores = {**dict(theirs["vocab"]), **scores}
    by_number = {number: token for token, number in ids.items()}
    return [
        [by_number[number], scores.get(by_number[number], lowest)]
        if number in by_number
        else [f"<unused {number}>", lowest]
        for number in range(1 + max(by_number))
    ]


def _unreachable(kind: str, plain: Mapping[str, ModelTokens]) -> list[str]:
    """Notes on new tokens that no text is split into, because their tokenizer has no merges to add."""
    if kind != "BPE":
        return []
    counts: dict[str, int] = {}
    for other in plain.values():
        if other.document["model"]["type"] != "BPE":
            counts[other.model] = counts.get(other.model, 0) + 1
    return [
        f"{count} tokens of {model} have a row in the output, but no text is split into them: its tokenizer is not BPE"
        for model, count in counts.items()
    ]


def _check(home: ModelTokens, data: bytes, ids: Mapping[str, int]) -> None:
    """Check that the library reads the planned numbers from the new tokenizer."""
    from tokenizers import Tokenizer

    problem = f"{home.model}: tokens cannot be added to its tokenizer"
    try:
        read: Tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the tokenizers library raises bare Exception
        raise WeightopsError(f"{problem} ({error}); use tokenizer_source: base") from error
    vocabulary = read.get_vocab(with_added_tokens=True)
    if any(vocabulary.get(token) != number for token, number in ids.items()):
        raise WeightopsError(f"{problem}; use tokenizer_source: base")
