"""Plans the vocabulary of a merge: the output's tokens, their rows in each model, and the tokenizer files.

Rows are aligned by token, never by number. Only padding, the rows without a token, is aligned by number.
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
        size: Number of rows of its embedding.
        alignment: Every model's rows for the output's; ``alignment.among(models, base)`` for one tensor.
        unchanged: Every model already has exactly these rows, so embedding and head merge like any tensor.
        files: All files of its tokenizer, chat template included, and ``generation_config.json`` if it changes.
        left_out: Files of the reference that must not be copied: they describe another vocabulary.
        config: Keys of ``config.json`` that change with the vocabulary.
        notes: What the user should know although it is not a fault.
    """

    size: int
    alignment: Alignment
    unchanged: bool
    files: Mapping[str, bytes]
    left_out: tuple[str, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def rows_in(self) -> Mapping[str, Ints]:
        """For each model, the model's row for each output row; -1 where the model has none."""
        return self.alignment.rows_in

    @property
    def fallback(self) -> Fallback:
        """The rows that replace those that a model lacks."""
        return self.alignment.fallback


def plan_vocabulary(
    config: MergeConfig, models: Mapping[str, Weights], reference: str, *, trust_remote_code: bool = False
) -> Vocabulary | None:
    """Plan the vocabulary of one document's output from tokenizers and headers; no weights are read.

    Args:
        config: The document.
        models: Its opened models, and the model that it names as tokenizer source, if any.
        reference: The model whose config and files the output follows: the base, else the first.
        trust_remote_code: As for :func:`weightops.io.tokenizer.tokenizer_of`.

    Returns:
        The vocabulary, or ``None`` if all models have the same one and the config sets nothing.

    Raises:
        WeightopsError: every missing or broken tokenizer, and every token entry that cannot be used, together.
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
    if reference not in tokens:  # without a tokenizer there is nothing to align
        return None if config.chat_template is None else _only_template(config, models, reference)
    tokens = {**tokens, **{model: _as(tokens[reference], model, models) for model in merged if model not in tokens}}
    if config.tokenizer is None and config.chat_template is None and _same_rows(tokens, merged):
        return None
    return _planned(config, models, tokens, merged, reference)


# --- the models' tokenizers ------------------------------------------------------------------------------------------


def _same_files(models: Mapping[str, Weights], merged: Sequence[str]) -> bool:
    """Whether the tokenizers are the same files, or no model has one."""
    prints = {fingerprint(models[model]) for model in merged}
    return len(prints) == 1 and (None not in prints or not any(has_tokenizer(models[model]) for model in merged))


def _needed(models: Mapping[str, Weights], merged: Sequence[str], reference: str) -> list[str]:
    """Models that need a tokenizer; a model with as many rows as the reference is assumed to share its tokenizer."""
    rows = embedding_rows(models[reference])
    return [model for model in merged if model == reference or embedding_rows(models[model]) != rows]


def _as(reference: ModelTokens, model: str, models: Mapping[str, Weights]) -> ModelTokens:
    source = models[model]
    return ModelTokens(model, source, embedding_rows(source), reference.tokenizer, reference.ids)


def _same_rows(tokens: Mapping[str, ModelTokens], merged: Sequence[str]) -> bool:
    first, *others = (tokens[model] for model in merged)
    return all(
        other.rows == first.rows and (other.ids is first.ids or other.with_row == first.with_row) for other in others
    )


def _read_source(
    config: MergeConfig, models: Mapping[str, Weights], read: Callable[..., dict[str, ModelTokens]]
) -> dict[str, ModelTokens]:
    """The tokenizer that the config names, if it is from another model than the merged ones or from a folder."""
    chosen = config.tokenizer
    if chosen is None or chosen.source in ("union", "base", *config.referenced_models()):
        return {}
    try:
        source = models.get(chosen.source) or tokenizer_only(chosen.source)
    except WeightopsError as error:
        hint = nearest(chosen.source, (*config.referenced_models(), "union", "base"))
        raise WeightopsError(config.at(chosen.line, error.problems[0] + hint)) from error
    return read({chosen.source: source}, [chosen.source])


def _only_template(config: MergeConfig, models: Mapping[str, Weights], reference: str) -> Vocabulary:
    """The vocabulary if the reference has no tokenizer: rows do not change, and only the template is written."""
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
    settings = config.tokenizer or TokenizerConfig("base")
    union = settings.source == "union"
    home = tokens[reference if settings.source in ("union", "base") else settings.source]
    output = extend(
        home, [tokens[model] for model in merged if model != reference] if union else [], [*settings.tokens]
    )
    size = _size(settings, output, tokens, merged, reference)
    alignment = _aligned(config, settings, output, size, tokens, merged)
    unchanged = not alignment.forced.any() and all(
        tokens[model].rows == size and np.array_equal(rows_in, np.arange(size))
        for model, rows_in in alignment.rows_in.items()
    )
    numbers = Numbers(output, tokens[reference])
    files = {**files_of(output), **numbers.generation(models[reference])}
    files, template_notes = _with_template(config, models, files, output.ids, output.home.source)
    notes = (*_notes(config, output, size, tokens, merged, unchanged), *output.notes, *template_notes)
    changed = numbers.config(models[reference], size)
    return Vocabulary(size, alignment, unchanged, files, _left_out(models, reference, files), changed, notes)


def _size(
    settings: TokenizerConfig,
    output: OutputTokens,
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
    reference: str,
) -> int:
    """Enough rows for every token that has a row in some model, at least as many as before, and padded."""
    home = output.home
    somewhere = {token for model in merged for token in tokens[model].with_row}
    dangling = {token for token in home.ids if token not in home.with_row and token not in somewhere}
    need = 1 + max((number for token, number in output.ids.items() if token not in dangling), default=-1)
    before = home.rows
    if before is None:  # a tokenizer without a model; it may be the reference's
        before = tokens[reference].rows if home.ids == tokens[reference].ids else 0
    size, multiple = max(need, before or 0), settings.pad_to_multiple_of or 1
    return -(-size // multiple) * multiple


def _aligned(
    config: MergeConfig,
    settings: TokenizerConfig,
    output: OutputTokens,
    size: int,
    tokens: Mapping[str, ModelTokens],
    merged: Sequence[str],
) -> Alignment:
    inside = {token: number for token, number in output.ids.items() if number < size}
    named, forced = np.zeros(size, bool), np.zeros(size, bool)
    named[list(inside.values())] = True
    rows_in = {model: _rows_in(tokens[model], inside, named) for model in merged}
    listed = [(token, entry) for token, entry in settings.tokens.items() if token in inside]
    for token, entry in listed:
        forced[inside[token]] = entry.force
    lacked = forced | (np.stack(list(rows_in.values())) < 0).any(0)
    entries = [(token, entry) for token, entry in listed if entry.kind != "default" and lacked[inside[token]]]
    choices = attempt_all(partial(_choice, config, token, entry, tokens) for token, entry in entries)
    chosen = {inside[token]: choice for (token, _), choice in zip(entries, choices, strict=True)}
    return Alignment(rows_in, forced, named, chosen, config.base_model)


def _rows_in(model: ModelTokens, inside: Mapping[str, int], named: Any) -> Ints:
    """A model's row for each output row: by token, and for padding by number."""
    size, rows = len(named), 1 + max(model.ids.values(), default=-1) if model.rows is None else model.rows
    rows_in = np.full(size, -1, np.int64)
    shared = [(number, model.with_row[token]) for token, number in inside.items() if token in model.with_row]
    if shared:
        places, theirs = np.array(shared, np.int64).T
        rows_in[places] = theirs
    bare = np.ones(rows, bool)
    bare[list(model.with_row.values())] = False
    padding = np.flatnonzero(bare[:size] & ~named[: len(bare)])
    rows_in[padding] = padding
    return rows_in


def _choice(
    config: MergeConfig, token: str, entry: TokenSource, tokens: Mapping[str, ModelTokens]
) -> tuple[str, int] | None:
    """The row that the config names for a token; ``None`` for zeros."""
    if entry.kind == "zero":
        return None
    model = tokens.get(entry.model or "")
    if model is None or entry.model is None:
        raise WeightopsError(config.at(entry.line, f"token {token!r} comes from {entry.model!r}, which is not merged"))
    name = token if entry.kind == "model" else entry.token
    row = entry.token_id if name is None else model.with_row.get(name)
    if row is None or row >= (model.rows or 0):
        what = f"row {row}" if row is not None else f"row for token {name!r}"
        raise WeightopsError(config.at(entry.line, f"token {token!r}: {entry.model} has no {what}; name one it has"))
    return entry.model, row


# --- files and notes -------------------------------------------------------------------------------------------------


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
            hint = f"{home.spec} has no chat template but {having[0]} has one; chat_template: auto uses it"
            return dict(files), (hint,)
        return dict(files), ()
    template, note = choose_template(config.chat_template, models, merged)
    if template is None:
        return dict(files), (note,)
    unknown = unknown_markers(template, ids) if ids else []
    markers = f"the chat template writes {', '.join(unknown)}, not a token of the output; list it in tokenizer: tokens"
    return with_template(files, template), (note, markers) if unknown else (note,)


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
        lost = [token for token in tokens[model].with_row if token not in output.ids]
        if lost:
            remedy = "; tokenizer_source: union keeps them" if config.tokenizer is None else ""
            notes.append(f"{len(lost)} tokens of {model} are not in the output (first: {lost[0]!r}){remedy}")
    rowless = [
        token
        for token, number in output.ids.items()
        if number < size and not any(token in tokens[model].with_row for model in merged)
    ]
    entries = config.tokenizer.tokens if config.tokenizer else {}
    rowless = [token for token in rowless if token not in entries or entries[token].kind == "default"]
    if rowless:
        notes.append(f"{len(rowless)} tokens have a row in no model and start as zeros (first: {rowless[0]!r})")
    dangling = [token for token, number in output.ids.items() if number >= size]
    if dangling:
        notes.append(f"{len(dangling)} tokens of {output.home.model} have no row, as before (first: {dangling[0]!r})")
    return notes
