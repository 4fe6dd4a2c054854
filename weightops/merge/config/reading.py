"""Reads a merge file: mergekit's YAML, unchanged. All faults are reported at once, each with its line.

A file may hold several documents; one with a ``name`` can be used as a model by the others (see :mod:`.documents`).
Keys that mergekit does not know have no effect, as there, but a note says so; they are faults if the reading is strict.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ...errors import WeightopsError, short
from ...io.faults import Faults
from ...io.small_files import read_small
from ...io.yaml_lines import Entry, Node, documents
from .check import check
from .documents import check_documents
from .fields import (
    chat_template,
    document_name,
    dtype_name,
    flag,
    ignore_unknown,
    index,
    items,
    mapping,
    model_name,
    multiple,
    number,
    out_dtype_name,
    read_key,
    text,
    too_many,
)
from .merge_faults import MergeFaults
from .schema import (
    Condition,
    InputModel,
    Lines,
    MergeConfig,
    Module,
    Parameters,
    Scalar,
    Setting,
    Slice,
    TokenizerConfig,
    TokenSource,
)

#: Keys that only occur in files for mergekit's other tools, and that tool.
ELSEWHERE = {
    "experts": "mergekit-moe",
    "gate_mode": "mergekit-moe",
    "shared_experts": "mergekit-moe",
    "genome": "mergekit-evolve",
    "layer_slices": "bakllama",
}

#: What to do with such a file.
_REMEDIES = {
    "mergekit-moe": "run it with weightops moe",
    "mergekit-evolve": "search with weightops soup evolve",
    "bakllama": "write its layers as slices",
}

MOST_DOCUMENTS = 100
MOST_MODULES = 100
#: Most layers of one document's output, all slices together. The deepest models in use have about 200.
MOST_LAYERS = 2_000

_SOURCES = ("models", "slices", "modules")
_TOP = (
    *("name", "merge_method", *_SOURCES, "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
    "lines",  # ours
)


def load(source: str | os.PathLike[str], where: str | None = None, *, strict: bool = False) -> tuple[MergeConfig, ...]:
    """Read a merge file, or text with at least one line break.

    Args:
        source: Path of the file, or the YAML itself.
        where: Name of the file in messages; by default the path, or ``config`` for text.
        strict: Refuse what has no effect, and weights that are not set.

    Returns:
        The documents in file order; :func:`.documents.in_order` puts them in the order to run.

    Raises:
        WeightopsError: all problems of the file, each on a line of its own with its line number.
    """
    if isinstance(source, str) and "\n" in source:
        return parse(source, where or "config", strict=strict)
    return parse(read_text(source), where or os.fspath(source), strict=strict)


def read_text(file: str | os.PathLike[str]) -> str:
    """The text of a merge file.

    Raises:
        WeightopsError: it cannot be read.
    """
    try:
        return read_small(Path(file)).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WeightopsError(f"{os.fspath(file)}: cannot read the merge file ({why}); check the path") from error


def parse(text: str, where: str = "config", *, strict: bool = False) -> tuple[MergeConfig, ...]:
    """Read the text of a merge file; see :func:`load`.

    Raises:
        WeightopsError: all problems of the text.
    """
    faults = MergeFaults(where, strict=strict)
    nodes = documents(text, faults)
    if len(nodes) > MOST_DOCUMENTS:
        faults.add(nodes[MOST_DOCUMENTS].line, f"{len(nodes):,} documents, the limit is {MOST_DOCUMENTS}")
        faults.raise_any()
    configs: list[MergeConfig] = []
    for node in nodes:
        config = _document(node, faults)
        if config is not None:
            check(config, faults)
            configs.append(replace(config, notes=faults.take_notes()))
    if not nodes and not faults:
        faults.add(1, "the file is empty; it needs at least `merge_method` and `models`")
    check_documents(configs, faults)
    faults.raise_any()
    return tuple(configs)


# --- documents -------------------------------------------------------------------------------------------------------


def _document(node: Node, faults: Faults) -> MergeConfig | None:
    entries = mapping(node, "a merge configuration", faults)
    if entries is None:
        return None
    for key, tool in ELSEWHERE.items():
        if key in entries:
            faults.add(entries[key].line, f"{key!r} belongs to a file for {tool}; {_REMEDIES[tool]}")
            return None
    ignore_unknown(entries, _TOP, faults)
    lines = {key: entry.line for key, entry in entries.items()}
    given = [key for key in _SOURCES if key in entries and entries[key].node.value is not None]
    if len(given) != 1:
        line = entries[given[1]].line if given else node.line
        faults.add(line, f"exactly one of models, slices and modules is needed; {' and '.join(given) or 'none'} given")
    method = read_key(entries, "merge_method", text, faults)
    if "merge_method" not in entries:
        faults.add(node.line, "merge_method is missing")
    return MergeConfig(
        merge_method=method or "",
        name=read_key(entries, "name", document_name, faults),
        models=read_key(entries, "models", _models, faults) or (),
        slices=read_key(entries, "slices", _slices, faults) or (),
        modules=read_key(entries, "modules", _modules, faults) or {},
        parameters=_parameters(entries, faults),
        base_model=read_key(entries, "base_model", model_name, faults),
        dtype=read_key(entries, "dtype", dtype_name, faults),
        out_dtype=read_key(entries, "out_dtype", out_dtype_name, faults),
        tokenizer=_tokenizer(entries, faults),
        chat_template=read_key(entries, "chat_template", chat_template, faults),
        layer_scaling=read_key(entries, "lines", _lines, faults),
        line=node.line,
        lines=lines,
        where=faults.where,
    )


def _models(node: Node, faults: Faults) -> tuple[InputModel, ...]:
    return items(node, "models", _input_model, faults)


def _slices(node: Node, faults: Faults) -> tuple[Slice, ...]:
    read = items(node, "slices", _slice, faults)
    spans = [one.sources[0].layer_range or (0, 0) for one in read if one.sources]
    layers = sum(end - start for start, end in spans)
    if layers > MOST_LAYERS:
        faults.add(node.line, f"the slices have {short(layers)} layers together, the limit is {MOST_LAYERS:,}")
        return ()
    return read


def _modules(node: Node, faults: Faults) -> dict[str, Module]:
    entries = mapping(node, "modules", faults) or {}
    if not entries:
        faults.add(node.line, "modules is empty")
    elif too_many(node, "modules", faults, MOST_MODULES):
        return {}
    read = {name: _module(entry.node, faults) for name, entry in entries.items()}
    return {name: module for name, module in read.items() if module is not None}


def _module(node: Node, faults: Faults) -> Module | None:
    entries = mapping(node, "a module", faults)
    if entries is None:
        return None
    ignore_unknown(entries, ("models", "slices", "parameters"), faults)
    if ("models" in entries) == ("slices" in entries):
        faults.add(node.line, "a module needs either models or slices")
    return Module(
        models=read_key(entries, "models", _models, faults) or (),
        slices=read_key(entries, "slices", _slices, faults) or (),
        parameters=_parameters(entries, faults),
        line=node.line,
    )


def _slice(node: Node, faults: Faults) -> Slice | None:
    entries = mapping(node, "a slice", faults)
    if entries is None:
        return None
    # mergekit accepts residual_weight and never reads it
    ignore_unknown(entries, ("sources", "base_model", "parameters", "residual_weight"), faults)
    if "sources" not in entries:
        faults.add(node.line, "a slice needs sources: a list of models with their layer_range")
    return Slice(
        sources=read_key(entries, "sources", _sources, faults) or (),
        base_model=read_key(entries, "base_model", model_name, faults),
        parameters=_parameters(entries, faults),
        line=node.line,
    )


def _sources(node: Node, faults: Faults) -> tuple[InputModel, ...]:
    return items(node, "sources", _slice_source, faults)


def _slice_source(node: Node, faults: Faults) -> InputModel | None:
    entries = mapping(node, "a slice's source", faults)
    if entries is None:
        return None
    ignore_unknown(entries, ("model", "layer_range", "parameters"), faults)
    if "layer_range" not in entries:
        faults.add(node.line, "a slice's source needs a layer_range, for example [0, 16]")
    span = read_key(entries, "layer_range", _layer_range, faults)
    return _input(node, entries, span, faults)


def _input_model(node: Node, faults: Faults) -> InputModel | None:
    entries = mapping(node, "an entry of models", faults)
    if entries is None:
        return None
    ignore_unknown(entries, ("model", "parameters"), faults)
    return _input(node, entries, None, faults)


def _input(node: Node, entries: Mapping[str, Entry], span: tuple[int, int] | None, faults: Faults) -> InputModel | None:
    if "model" not in entries:
        faults.add(node.line, "model is missing")
    model = read_key(entries, "model", model_name, faults)
    parameters = _parameters(entries, faults)
    return InputModel(model, span, parameters, node.line) if model else None


def _layer_range(node: Node, faults: Faults) -> tuple[int, int] | None:
    ends = [item.value for item in node.value] if isinstance(node.value, tuple) else []
    if len(ends) != 2 or not all(type(end) is int for end in ends):
        faults.add(node.line, "layer_range needs two whole numbers, [start, end], where end is not included")
        return None
    if not 0 <= ends[0] <= ends[1]:
        faults.add(node.line, f"layer_range {ends} must not be negative, and its end must not be before its start")
        return None
    return ends[0], ends[1]


# --- parameters ------------------------------------------------------------------------------------------------------


def _parameters(entries: Mapping[str, Entry], faults: Faults) -> Parameters:
    if "parameters" not in entries or entries["parameters"].node.value is None:
        return Parameters()
    given = mapping(entries["parameters"].node, "parameters", faults) or {}
    settings = {key: _setting(key, entry.node, faults) for key, entry in given.items()}
    return Parameters(
        {key: setting for key, setting in settings.items() if setting},
        {key: entry.line for key, entry in given.items()},
    )


def _setting(key: str, node: Node, faults: Faults) -> Setting:
    if isinstance(node.value, tuple) and too_many(node, key, faults):
        return ()
    if isinstance(node.value, dict):
        return _conditions((node,), faults)
    if isinstance(node.value, tuple) and any(isinstance(item.value, dict) for item in node.value):
        return _conditions(node.value, faults)
    value = _value(key, node, faults)
    return () if value is None else (Condition(value, None, node.line),)


def _conditions(nodes: Iterable[Node], faults: Faults) -> Setting:
    read = (_condition(node, faults) for node in nodes)
    return tuple(condition for condition in read if condition is not None)


def _condition(node: Node, faults: Faults) -> Condition | None:
    if not isinstance(node.value, dict):
        faults.add(node.line, "a list must have either plain values or {filter, value} entries, not both")
        return None
    entries: Mapping[str, Entry] = node.value
    ignore_unknown(entries, ("filter", "value"), faults)
    if "value" not in entries:
        faults.add(node.line, "value is missing")
        return None
    value = _value("value", entries["value"].node, faults)
    part = read_key(entries, "filter", text, faults)
    return None if value is None else Condition(value, part, entries["value"].line)


def _value(key: str, node: Node, faults: Faults) -> Scalar | tuple[Scalar, ...] | None:
    if isinstance(node.value, tuple) and too_many(node, key, faults):
        return None
    values = [item.value for item in node.value] if isinstance(node.value, tuple) else [node.value]
    if not values or not all(isinstance(value, (bool, int, float, str)) for value in values):
        faults.add(node.line, f"{key!r} needs a number, text, true or false, or a list of them over the layers")
        return None
    return tuple(values) if isinstance(node.value, tuple) else values[0]


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _lines(node: Node, faults: Faults) -> Lines | None:
    """``lines: {alpha: 0.5, beta: 0.5}``: LiNeS, for any method that merges task vectors."""
    entries = mapping(node, "lines", faults)
    if entries is None:
        return None
    ignore_unknown(entries, ("alpha", "beta"), faults)
    given = {key: read_key(entries, key, number, faults) for key in ("alpha", "beta") if key in entries}
    return Lines(**{key: value for key, value in given.items() if value is not None})


def _tokenizer(entries: Mapping[str, Entry], faults: Faults) -> TokenizerConfig | None:
    old, new = entries.get("tokenizer_source"), entries.get("tokenizer")
    if old and new and old.node.value is not None and new.node.value is not None:
        faults.add(max(old.line, new.line), "tokenizer_source and tokenizer are both set; remove one of them")
    if old and old.node.value is not None:
        source = model_name(old.node, faults)
        return TokenizerConfig(source, line=old.line) if source else None
    given = mapping(new.node, "tokenizer", faults) if new and new.node.value is not None else None
    if given is None or new is None:
        return None
    ignore_unknown(given, ("source", "tokens", "pad_to_multiple_of"), faults)
    return TokenizerConfig(
        source=read_key(given, "source", model_name, faults) or "union",
        tokens=read_key(given, "tokens", _tokens, faults) or {},
        pad_to_multiple_of=read_key(given, "pad_to_multiple_of", multiple, faults),
        line=new.line,
    )


def _tokens(node: Node, faults: Faults) -> dict[str, TokenSource]:
    entries = mapping(node, "tokens", faults) or {}
    return {token: _token(entry.node, faults) for token, entry in entries.items()}


def _token(node: Node, faults: Faults) -> TokenSource:
    entries = mapping(node, "a token's entry", faults) or {}
    ignore_unknown(entries, ("source", "force"), faults)
    force = bool(read_key(entries, "force", flag, faults))
    source = entries["source"].node if "source" in entries else Node(None, node.line)
    if source.value is None:
        return TokenSource(force=force, line=node.line)
    if not isinstance(source.value, dict) or "kind" not in source.value:
        return TokenSource("model", model_name(source, faults), force=force, line=source.line)
    return _token_of_kind(source, force, faults)


def _token_of_kind(node: Node, force: bool, faults: Faults) -> TokenSource:
    kind = node.value["kind"].node.value
    if kind == "zero":
        ignore_unknown(node.value, ("kind",), faults)
        return TokenSource("zero", force=force, line=node.line)
    if kind != "model_token":
        faults.add(node.line, f"kind {kind!r} is unknown; use zero or model_token")
        return TokenSource(force=force, line=node.line)
    ignore_unknown(node.value, ("kind", "model", "token", "token_id"), faults)
    token = read_key(node.value, "token", text, faults)
    token_id = read_key(node.value, "token_id", index, faults)
    if "model" not in node.value or (token is None) == (token_id is None):
        faults.add(node.line, "model_token needs a model and either token or token_id")
    model = read_key(node.value, "model", model_name, faults)
    return TokenSource("model_token", model, token, token_id, force, node.line)
