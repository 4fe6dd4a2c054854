"""A PEFT LoRA folder as a delta: products of factors, never the factors averaged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import WeightopsError
from .folder import read_json, tensors_of_file
from .safetensors import StoredTensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

#: Settings of PEFT's LoRA under which an update is more, or other, than scale * B @ A added to a weight.
_NO_PRODUCT = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "trainable_token_indices", "target_parameters", "layer_replication"),
)
#: Initialisations that subtract their own start from the base's weights, again whenever PEFT loads the adapter.
_MOVES_BASE = ("pissa", "corda", "olora", "loftq")

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
            f"{folder}: adapter of type {config.get('peft_type')!r}; only LORA has a delta that can be added"
        )
    for key in _NO_PRODUCT:
        if config.get(key):
            raise WeightopsError(
                f"{folder / CONFIG}: {key} is set, its delta is no plain product; merge it with PEFT's merge_and_unload"
            )
    if str(config.get("init_lora_weights")).lower().startswith(_MOVES_BASE):
        raise WeightopsError(
            f"{folder / CONFIG}: init_lora_weights is {config['init_lora_weights']!r}, which changes "
            "the base too; merge "
            "it with PEFT's merge_and_unload"
        )
    factors, replaced = _sort(_tensors(folder))
    updates = {}
    for (module, embedding), sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise WeightopsError(
                f"{folder}: {module} has lora_{''.join(sides)} without its partner; the adapter is incomplete"
            )
        updates[f"{module}.weight"] = _update(config, module, sides, embedding)
    if not updates and not replaced:
        raise WeightopsError(f"{folder}: the adapter changes no tensor; check {WEIGHTS}")
    return Adapter(spec, folder, updates, replaced)


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS).exists():
        return tensors_of_file(folder / WEIGHTS)
    if (folder / "adapter_model.bin").exists():
        from .pickled import converted  # torch is wanted only for this

        return tensors_of_file(converted(folder / "adapter_model.bin") / "model.safetensors")
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
    config: Mapping[str, Any], module: str, sides: Mapping[str, StoredTensor], embedding: bool
) -> LowRankUpdate:
    """PEFT stores A as [rank, in], B as [out, rank]; an embedding's update is (B @ A) transposed, as is a Conv1D's."""
    shapes = [sides[side].shape for side in "AB"]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
        raise WeightopsError(
            f"{sides['A'].file}: {module}: lora_A of shape {shapes[0]}, lora_B of shape {shapes[1]}; "
            "only matrices of one "
            "rank have a product, merge it with PEFT's merge_and_unload"
        )
    rank = shapes[0][0]
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRankUpdate(sides["B"], sides["A"], scale, embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """PEFT's rule: a pattern is a regular expression for the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)
