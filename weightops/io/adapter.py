"""A PEFT LoRA folder as a delta: the product of its two factors is added; factors are never averaged."""

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

#: Settings of PEFT's LoRA with which an update is not just scale * B @ A added to a weight.
_NO_PRODUCT = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "trainable_token_indices", "target_parameters", "layer_replication"),
)
#: Initialisations that also change the base's weights, every time PEFT loads the adapter.
_MOVES_BASE = ("pissa", "corda", "olora", "loftq")

#: Most entries of ``alpha_pattern`` that are not plain names, and most characters of each entry.
MOST_PATTERNS = 1_000
MOST_PATTERN = 500
#: Most steps of RE2: characters of all module names times instructions of all patterns; a step takes 6 ns.
MOST_STEPS = 300_000_000
#: Largest ``lora_alpha``; with a larger one, the product does not fit any dtype.
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
    """A LoRA adapter on disk. Two objects opened from the same files are equal.

    Attributes:
        updates: Low-rank updates, by the name of the tensor that is changed.
        replaced: Full tensors of the adapter (``modules_to_save``), by name.
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
        """The folder, and every factor's shape, file, offset and scale, with links resolved."""

        def place(tensor: StoredTensor) -> tuple[Any, ...]:
            return tensor.dtype, tensor.shape, tensor.file.name, tensor.offset

        updates = {n: (place(u.left), place(u.right), u.scale, u.transposed) for n, u in self.updates.items()}
        return self.folder.resolve(), updates, {name: place(tensor) for name, tensor in self.replaced.items()}

    def __repr__(self) -> str:
        return f"Adapter({self.spec!r}, {len(self.updates)} updates)"


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains a PEFT adapter and no model."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def read_adapter(folder: Path, spec: str) -> Adapter:
    """Read a LoRA folder's configuration and headers.

    Raises:
        WeightopsError: not LoRA, a variant whose update is not a plain product (DoRA), or a missing factor.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise WeightopsError(
            f"{folder}: the adapter's type is {short(repr(config.get('peft_type')))}; weightops supports only LORA"
        )
    for key in _NO_PRODUCT:
        if config.get(key):
            raise WeightopsError(
                f"{folder / CONFIG}: {key} is set, so the update is not a plain product of two matrices; merge the "
                "adapter with PEFT's merge_and_unload"
            )
    if str(config.get("init_lora_weights"))[:20].lower().startswith(_MOVES_BASE):
        raise WeightopsError(
            f"{folder / CONFIG}: init_lora_weights is {short(repr(config['init_lora_weights']))}, which also "
            "changes the base; merge the adapter with PEFT's merge_and_unload"
        )
    factors, replaced = _sort(_tensors(folder))
    alphas = _alphas(config, folder / CONFIG, sum(len(module) for module, _ in factors))
    updates = {}
    for (module, embedding), sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise WeightopsError(
                f"{folder}: {short(module)} has only lora_{''.join(sides)}; the adapter is incomplete, save it again"
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
    raise WeightopsError(f"{folder}: {WEIGHTS} is missing; save the adapter again")


def _sort(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[tuple[str, bool], dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Sort tensors by role: factors by (module, whether an embedding) and side; full tensors by name."""
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
            f"{sides['A'].file}: {short(module)}: lora_A has shape {shapes[0]} and lora_B has shape {shapes[1]}, "
            "so they are not two matrices of one rank; merge the adapter with PEFT's merge_and_unload"
        )
    rank = shapes[0][0]
    scale = alphas.of(module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRankUpdate(sides["B"], sides["A"], scale, embedding or bool(config.get("fan_in_fan_out")))


@dataclass(frozen=True)
class _Alphas:
    """``lora_alpha``, and ``alpha_pattern`` for modules whose names end in a match of one of its patterns.

    The first pattern that matches counts. Plain names are looked up, because an adapter whose modules all differ in
    rank has one for each. The other patterns come from a file, so RE2 runs them: its time grows only linearly with the
    name.

    Attributes:
        names: Plain names, with their place in the order and their alpha.
        by: The other patterns: place, pattern, alpha.
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
    """Read the alphas of a configuration; ``characters`` is the length of all module names together."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightopsError(f"{file}: alpha_pattern must map patterns to numbers; found {short(patterns)}")
    entries = [(place, text, _alpha(value, file)) for place, (text, value) in enumerate(patterns.items())]
    plain = [_PLAIN.fullmatch(text) is not None and len(text) < MOST_PATTERN for _, text, _ in entries]
    if plain.count(False) > MOST_PATTERNS:
        count = plain.count(False)
        raise WeightopsError(f"{file}: alpha_pattern has {count} patterns, the limit is {MOST_PATTERNS}")
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
            raise re2.error(f"it has {len(text)} characters, the limit is {MOST_PATTERN}")
        return re2.compile(rf"(?:.*\.)?(?:{text})", options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise WeightopsError(
            f"{file}: alpha_pattern {short(repr(text))} cannot be used ({short(reason)}); patterns are read by RE2, "
            "which has no look-ahead and no back-references"
        ) from error


def _alpha(value: Any, file: Path) -> float:
    if type(value) not in (int, float) or not abs(value) < MOST_ALPHA:
        raise WeightopsError(
            f"{file}: an alpha is {short(value)}; lora_alpha and alpha_pattern must contain plain numbers"
        )
    return float(value)
