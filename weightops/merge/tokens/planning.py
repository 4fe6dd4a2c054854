"""What a merge does with the models' vocabularies: the output's tokens, their rows in each model, and its files.

Rows are aligned by token, never by number. Padding stays: rows without a token belong together by number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import WeightopsError, attempt_all
from ...io.tokenizer import has_tokenizer, tokenizer_files
from ...io.weights import Weights
from ...ops.registry import nearest
from ..config.schema import MergeConfig, TokenizerConfig, TokenSource
from .chat_template import choose_template, template_of, unknown_markers, with_template
from .model_tokens import ModelTokens, embedding_rows, fingerprint, read_tokens, tokenizer_only
from .row_alignment import Alignment, Fallback, Ints, gather_rows, mean_row
from .tokenizer_files import Numbers, files_of
from .union import OutputTokens, extend

__all__ = ["Alignment", "Fallback", "Vocabulary", "gather_rows", "mean_row", "plan_vocabulary"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The vocabulary of an output.

    Attributes:
        size: Rows of its embedding.
        alignment: Where they come from, over all models; ``alignment.among(models, base)`` for one tensor.
        unchanged: Every model has just these rows already: embedding and head merge like any tensor.
        files: All files of its tokenizer, chat template included, and ``generation_config.json`` if it changes.
        left_out: Files of the reference that must not go out: they describe another vocabulary.
        config: Keys of ``config.json`` that follow.
        notes: What is no fault but should be known.
    """

    size: int
    alignment: Alignment
    unchanged: bool
    files: Mapping[str, bytes]
    left_out: tuple[str, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> Mapping[str, Ints]:
        """For each model, the row of each output row in it, -1 where it has none."""
        return self.alignment.own

    @property
    def fallback(self) -> Fallback:
        """What stands in for rows that a model lacks."""
        return self.alignment.fallback


def plan_vocabulary(
    config: MergeConfig, models: Mapping[str, Weights], reference: str, *, trust_remote_code: bool = False
) -> Vocabulary | None:
    """Plan the vocabulary of one document's output from tokenizers and headers; no weights are read.

    Args:
        config: The document.
        models: Its models, and the one it names as tokenizer source where that is a model; opened.
        reference: The model whose config and files the output follows: the base, else the first.
        trust_remote_code: As for :func:`weightops.io.tokenizer.tokenizer_of`.

    Returns:
        The vocabulary, or ``None`` where the models have one and the same and the config asks for nothing.

    Raises:
        WeightopsError: every missing or broken tokenizer, and every token entry that cannot be met, together.
    """
    merged = config.referenced_models()
    if config.tokenizer is None:
        sizes = {embedding_rows(models[model]) for model in merged}
        alike = len(sizes) == 1 and _same_files(models, merged)
        if alike and config.chat_template is None:
            return None
        needed = [] if len(sizes) == 1 else _needed(models, merged, reference)
    else:
        needed = list(merged)
    tokens: dict[str, ModelTokens] = {}
    read_trusting = partial(read_tokens, trust_remote_code=trust_remote_code)
    tasks = (partial(read_trusting, models, needed), partial(_read_source, config, models, read_trusting))
    for read in attempt_all(tasks):
        tokens |= read
    if reference not in tokens:  # nothing to align by, and nothing to align
        return None if config.chat_template is None else _only_template(config, models, reference)
    tokens = {**tokens, **{model: _as(tokens[reference], model, models) for model in merged if model not in tokens}}
    if config.tokenizer is None and config.chat_template is None and _same_rows(tokens, merged):
        return None
    return _planned(config, models, tokens, merged, reference)


# --- what there is ---------------------------------------------------------------------------------------------------


def _same_files(models: Mapping[str, Weights], merged: Sequence[str]) -> bool:
    """Whether the tokenizers are the same files, or nobody has one."""
    prints = {fingerprint(models[model]) for model in merged}
    return len(prints) == 1 and (None not in prints or not any(has_tokenizer(models[model]) for model in merged))


def _needed(models: Mapping[str, Weights], merged: Sequence[str], reference: str) -> list[str]:
    """Of models of different length, one as long as the reference may lack a tokenizer: it is taken to have its."""
    rows = embedding_rows(models[reference])
    return [model for model in merged if model == reference or embedding_rows(models[model]) != rows]


def _as(reference: ModelTokens, model: str, models: Mapping[str, Weights]) -> ModelTokens:
    source = models[model]
    return ModelTokens(model, source, embedding_rows(source), reference.tokenizer, reference.ids)


def _same_rows(tokens: Mapping[str, ModelTokens], merged: Sequence[str]) -> bool:
    first, *others = (tokens[model] for model in merged)
    return all(other.rows == first.rows and (other.ids is first.ids or other.held == first.held) for other in others)


def _read_source(
    config: MergeConfig, models: Mapping[str, Weights], read: Callable[..., dict[str, ModelTokens]]
) -> dict[str, ModelTokens]:
    """The tokenizer that is asked for by name and is none of the merged models': another model's, or a mere folder."""
    asked = config.tokenizer
    if asked is None or asked.source in ("union", "base", *config.referenced_models()):
        return {}
    try:
        source = models.get(asked.source) or tokenizer_only(asked.source)
    except WeightopsError as error:
        hint = nearest(asked.source, (*config.referenced_models(), "union", "base"))
        raise WeightopsError(config.at(asked.line, error.problems[0] + hint)) from error
    return read({asked.source: source}, [asked.source])


def _only_template(config: MergeConfig, models: Mapping[str, Weights], reference: str) -> Vocabulary:
    """The reference has no tokenizer: rows stay, and only the template goes out."""
    rows = embedding_rows(models[reference]) or 0
    merged = config.referenced_models()
    same = Alignment(dict.fromkeys(merged, np.arange(rows)), np.zeros(rows, bool), np.ones(rows, bool), {})
    files, notes = _with_template(config, models, tokenizer_files(models[reference].folder), {}, models[reference])
    return Vocabulary(rows, same, True, files, _left_out(models, reference, files), {}, notes)


# --- the plan --------------------------------------------------------------------------------------------------------


def _planned(
    config: MergeConfig,
    models: Mapping[str, Weights],
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
    reference: str,
) -> Vocabulary:
    asked = config.tokenizer or TokenizerConfig("base")
    union = asked.source == "union"
    home = tokens[reference if asked.source in ("union", "base") else asked.source]
    output = extend(home, [tokens[model] for model in merged if model != reference] if union else [], [*asked.tokens])
    size = _size(asked, output, tokens, merged, reference)
    alignment = _aligned(config, asked, output, size, tokens, merged)
    unchanged = not alignment.forced.any() and all(
        tokens[model].rows == size and np.array_equal(own, np.arange(size)) for model, own in alignment.own.items()
    )
    numbers = Numbers(output, tokens[reference])
    files = {**files_of(output), **numbers.generation(models[reference])}
    files, said = _with_template(config, models, files, output.ids, output.home.source)
    notes = (*_notes(config, output, size, tokens, merged, unchanged), *output.notes, *said)
    changed = numbers.config(models[reference], size)
    return Vocabulary(size, alignment, unchanged, files, _left_out(models, reference, files), changed, notes)


def _size(
    asked: TokenizerConfig,
    output: OutputTokens,
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
    reference: str,
) -> int:
    """Room for every token that has a row somewhere, at least the rows there were, padded as asked."""
    home = output.home
    somewhere = {token for model in merged for token in tokens[model].held}
    dangling = {token for token in home.ids if token not in home.held and token not in somewhere}
    need = 1 + max((number for token, number in output.ids.items() if token not in dangling), default=-1)
    before = home.rows
    if before is None:  # a tokenizer alone: it may be that of a model
        before = tokens[reference].rows if home.ids == tokens[reference].ids else 0
    size, multiple = max(need, before or 0), asked.pad_to_multiple_of or 1
    return -(-size // multiple) * multiple


def _aligned(
    config: MergeConfig,
    asked: TokenizerConfig,
    output: OutputTokens,
    size: int,
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
) -> Alignment:
    inside = {token: number for token, number in output.ids.items() if number < size}
    named, forced = np.zeros(size, bool), np.zeros(size, bool)
    named[list(inside.values())] = True
    own = {model: _own(tokens[model], inside, named) for model in merged}
    wanted = [(token, entry) for token, entry in asked.tokens.items() if token in inside]
    for token, entry in wanted:
        forced[inside[token]] = entry.force
    lacked = forced | (np.stack(list(own.values())) < 0).any(0)
    entries = [(token, entry) for token, entry in wanted if entry.kind != "default" and lacked[inside[token]]]
    choices = attempt_all(partial(_choice, config, token, entry, tokens) for token, entry in entries)
    chosen = {inside[token]: choice for (token, _), choice in zip(entries, choices, strict=True)}
    return Alignment(own, forced, named, chosen, config.base_model)


def _own(model: ModelTokens, inside: Mapping[str, int], named: Any) -> Ints:
    """A model's row of each output row: by token, and of padding by number."""
    size, rows = len(named), 1 + max(model.ids.values(), default=-1) if model.rows is None else model.rows
    own = np.full(size, -1, np.int64)
    shared = [(number, model.held[token]) for token, number in inside.items() if token in model.held]
    if shared:
        places, theirs = np.array(shared, np.int64).T
        own[places] = theirs
    bare = np.ones(rows, bool)
    bare[list(model.held.values())] = False
    padding = np.flatnonzero(bare[:size] & ~named[: len(bare)])
    own[padding] = padding
    return own


def _choice(
    config: MergeConfig, token: str, entry: TokenSource, tokens: Mapping[str, ModelTokens]
) -> tuple[str, int] | None:
    """The row that the config names for a token; ``None`` for zeros."""
    if entry.kind == "zero":
        return None
    model = tokens.get(entry.model or "")
    if model is None or entry.model is None:
        raise WeightopsError(config.at(entry.line, f"token {token!r} comes from {entry.model!r}, which is not merged"))
    wanted = token if entry.kind == "model" else entry.token
    row = entry.token_id if wanted is None else model.held.get(wanted)
    if row is None or row >= (model.rows or 0):
        what = f"row {row}" if row is not None else f"row for token {wanted!r}"
        raise WeightopsError(config.at(entry.line, f"token {token!r}: {entry.model} has no {what}; name one it has"))
    return entry.model, row


# --- what goes with it -----------------------------------------------------------------------------------------------


def _with_template(
    config: MergeConfig,
    models: Mapping[str, Weights],
    files: Mapping[str, bytes],
    ids: Mapping[str, int],
    home: Weights,
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    merged = config.referenced_models()
    if config.chat_template is None:
        having = [model for model in merged if template_of(models[model])]
        if having and not template_of(home):
            said = f"{home.spec} has no chat template and {having[0]} has one: chat_template: auto takes it over"
            return dict(files), (said,)
        return dict(files), ()
    template, note = choose_template(config.chat_template, models, merged)
    if template is None:
        return dict(files), (note,)
    unknown = unknown_markers(template, ids) if ids else []
    said = f"the chat template writes {', '.join(unknown)}, no token of the output; list it under tokenizer: tokens"
    return with_template(files, template), (note, said) if unknown else (note,)


def _left_out(models: Mapping[str, Weights], reference: str, files: Mapping[str, bytes]) -> tuple[str, ...]:
    return tuple(name for name in tokenizer_files(models[reference].folder) if name not in files)


def _notes(
    config: MergeConfig,
    output: OutputTokens,
    size: int,
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
    unchanged: bool,
) -> list[str]:
    notes = []
    if config.tokenizer is None and not unchanged:
        notes.append(f"the models' vocabularies differ; rows are aligned by token to that of {output.home.model}")
    for model in merged:
        lost = [token for token in tokens[model].held if token not in output.ids]
        if lost:
            remedy = "; tokenizer_source: union keeps them" if config.tokenizer is None else ""
            notes.append(f"{len(lost)} tokens of {model} are not in the output (first: {lost[0]!r}){remedy}")
    nobody = [
        token
        for token, number in output.ids.items()
        if number < size and not any(token in tokens[model].held for model in merged)
    ]
    entries = config.tokenizer.tokens if config.tokenizer else {}
    nobody = [token for token in nobody if token not in entries or entries[token].kind == "default"]
    if nobody:
        notes.append(f"{len(nobody)} tokens have a row in no model and start as zeros (first: {nobody[0]!r})")
    dangling = [token for token, number in output.ids.items() if number >= size]
    if dangling:
        notes.append(f"{len(dangling)} tokens of {output.home.model} have no row, as before (first: {dangling[0]!r})")
    return notes
