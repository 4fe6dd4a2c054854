"""A PEFT LoRA folder as a delta: products of factors, never the factors averaged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import WeightopsError, short
from .folder import read_json, tensors_of_file
from .safetensors import StoredTensor
from .small_files import inside

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

#: Settings of PEFT's LoRA under which an update is more, or other, than scale * B @ A added to a weight.
_NO_PRODUCT = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "trainable_token_indices", "target_parameters", "layer_replication"),
)
#: Initialisations that subtract their own start from the base's weights, again whenever PEFT loads the adapter.
_MOVES_BASE = ("pissa", "corda", "olora", "loftq")

#: Entries of ``alpha_pattern`` that are no plain names, and characters of each entry.
MOST_PATTERNS = 1_000
MOST_PATTERN = 500
#: Characters of all module names times instructions of all patterns: what RE2 needs at most, 6 ns each.
MOST_STEPS = 300_000_000
#: Size of ``lora_alpha``; beyond it no product fits any dtype.
MOST_ALPHA = 1e30

#: A module's name as a pattern, its dots escaped.
_PLAIN = re.compile(r"(?:\w|\\[.-])+", re.ASCII)
_PREFIX = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?$")


@dataclass(frozen=True)
class LowRankUpdate:
    """One module's factors: scale * left @ right, or its transpose, is added to ``{module}.weight``."""

    left: StoredTensor
    right: StoredTensor
    scale: float
    transposed: bool


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter as it lies on disk. Two openings of the same files are equal.

    Attributes:
        updates: By the name of the tensor that is changed.
        replaced: Tensors that the adapter holds whole (``modules_to_save``), by name.
    """

    spec: str
    folder: Path
    updates: Mapping[str, LowRankUpdate]
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted({u.left.file for u in self.updates.values()} | {t.file for t in self.replaced.values()}))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and (self is other or self._contents == other._contents)

    def __hash__(self) -> int:
        return hash(self._contents[0])

    @cached_property
    def _contents(self) -> tuple[Any, ...]:
        """The folder, and every factor's shape, place and scale; links resolved."""

        def place(tensor: StoredTensor) -> tuple[Any, ...]:
            return tensor.dtype, tensor.shape, tensor.file.name, tensor.offset

        updates = {n: (place(u.left), place(u.right), u.scale, u.transposed) for n, u in self.updates.items()}
        return self.folder.resolve(), updates, {name: place(tensor) for name, tensor in self.replaced.items()}

    def __repr__(self) -> str:
        return f"Adapter({self.spec!r}, {len(self.updates)} updates)"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def read_adapter(folder: Path, spec: str) -> Adapter:
    """Read a LoRA folder's configuration and headers.

    Raises:
        WeightopsError: not LoRA, or a variant whose delta is no plain product (DoRA), or a factor without its partner.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise WeightopsError(
            f"{folder}: adapter of type {short(repr(config.get('peft_type')))}; only LORA has a delta that can be added"
        )
    for key in _NO_PRODUCT:
        if config.get(key):
            raise WeightopsError(
                f"{folder / CONFIG}: {key} is set, its delta is no plain product; merge it with PEFT's merge_and_unload"
            )
    if str(config.get("init_lora_weights"))[:20].lower().startswith(_MOVES_BASE):
        raise WeightopsError(
            f"{folder / CONFIG}: init_lora_weights is {short(repr(config['init_lora_weights']))}, which changes "
            "the base too; merge "
            "it with PEFT's merge_and_unload"
        )
    factors, replaced = _sort(_tensors(folder))
    alphas = _alphas(config, folder / CONFIG, sum(len(module) for module, _ in factors))
    updates = {}
    for (module, embedding), sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise WeightopsError(
                f"{folder}: {short(module)} has lora_{''.join(sides)} without its partner; the adapter is incomplete"
            )
        updates[f"{module}.weight"] = _update(config, alphas, module, sides, embedding)
    if not updates and not replaced:
        raise WeightopsError(f"{folder}: the adapter changes no tensor; check {WEIGHTS}")
    return Adapter(spec, folder, updates, replaced)


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS).exists():
        return tensors_of_file(inside(folder / WEIGHTS, folder))
    if (folder / "adapter_model.bin").exists():
        from .pickled import converted

        return tensors_of_file(converted(inside(folder / "adapter_model.bin", folder)))
    raise WeightopsError(f"{folder}: no {WEIGHTS}; an adapter folder needs it")


def _sort(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[tuple[str, bool], dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Tensors by role: factors by (module, of an embedding) and side, and whole replacements by name."""
    factors: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        name = _PREFIX.sub("", name)
        if match := _FACTOR.match(name):
            key = match["module"], match["embedding"] is not None
            factors.setdefault(key, {})[match["side"]] = tensor
        else:
            replaced[re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", name)] = tensor
    return factors, replaced


def _update(
    config: Mapping[str, Any], alphas: _Alphas, module: str, sides: Mapping[str, StoredTensor], embedding: bool
) -> LowRankUpdate:
    """PEFT stores A as [rank, in], B as [out, rank]; an embedding's update is (B @ A) transposed, as is a Conv1D's."""
    shapes = [sides[side].shape for side in "AB"]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
        raise WeightopsError(
            f"{sides['A'].file}: {short(module)}: lora_A of shape {shapes[0]}, lora_B of shape {shapes[1]}; "
            "only matrices of one "
            "rank have a product, merge it with PEFT's merge_and_unload"
        )
    rank = shapes[0][0]
    scale = alphas.of(module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRankUpdate(sides["B"], sides["A"], scale, embedding or bool(config.get("fan_in_fan_out")))


@dataclass(frozen=True)
class _Alphas:
    """``lora_alpha``, and ``alpha_pattern`` for the modules whose names end in a match of its patterns.

    The first pattern that matches counts. Those that are plain names are looked up, because an adapter whose modules
    all differ in rank has one for each. The others are a stranger's, so an engine runs them that needs time in
    proportion to the name (RE2).

    Attributes:
        names: Plain ones, with their place in the order and their alpha.
        by: The others: place, pattern, alpha.
    """

    default: float
    names: Mapping[str, tuple[int, float]]
    by: tuple[tuple[int, Any, float], ...]

    def of(self, module: str) -> float:
        end = module[-MOST_PATTERN:]
        starts = [0, *(i + 1 for i, character in enumerate(end) if character == ".")]
        whole = starts if len(end) == len(module) else starts[1:]
        matches = [self.names[end[start:]] for start in whole if end[start:] in self.names]
        matches += [(place, alpha) for place, pattern, alpha in self.by if pattern.fullmatch(module)][:1]
        return min(matches)[1] if matches else self.default


def _alphas(config: Mapping[str, Any], file: Path, characters: int) -> _Alphas:
    """The alphas of a configuration, for modules whose names have so many characters together."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightopsError(f"{file}: alpha_pattern must map patterns to numbers; found {short(patterns)}")
    entries = [(place, text, _alpha(value, file)) for place, (text, value) in enumerate(patterns.items())]
    plain = [_PLAIN.fullmatch(text) is not None and len(text) < MOST_PATTERN for _, text, _ in entries]
    if plain.count(False) > MOST_PATTERNS:
        raise WeightopsError(
            f"{file}: {plain.count(False)} patterns in alpha_pattern, at most {MOST_PATTERNS} are read"
        )
    names: dict[str, tuple[int, float]] = {}
    for (place, text, alpha), is_plain in zip(entries, plain, strict=True):
        if is_plain:
            names.setdefault(text.replace("\\", ""), (place, alpha))
    others = [entry for entry, is_plain in zip(entries, plain, strict=True) if not is_plain]
    by = tuple((place, _compiled(text, file), alpha) for place, text, alpha in others)
    if characters * sum(pattern.programsize for _, pattern, _ in by) > MOST_STEPS:
        raise WeightopsError(f"{file}: alpha_pattern is too large for this many modules; write fewer, shorter patterns")
    return _Alphas(_alpha(config.get("lora_alpha", 8), file), names, by)


def _compiled(text: str, file: Path) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 18
    try:
        if len(text) > MOST_PATTERN:
            raise re2.error(f"it has {len(text)} characters, at most {MOST_PATTERN} are read")
        return re2.compile(rf"(?:.*\.)?(?:{text})", options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise WeightopsError(
            f"{file}: alpha_pattern {short(repr(text))} cannot be used ({short(reason)}); patterns are read by RE2, "
            "which has no look-ahead and no back-references"
        ) from error


def _alpha(value: Any, file: Path) -> float:
    if type(value) not in (int, float) or not abs(value) < MOST_ALPHA:
        raise WeightopsError(f"{file}: an alpha of {short(value)}; lora_alpha and alpha_pattern hold plain numbers")
    return float(value)
