"""Weights of 8 bits: which stored numbers and which scales belong together. Headers and the configuration are read.

A weight is a number of 8 bits times the scale of its block. Read so, each is rounded once, to bf16, as in transformers'
dequantisation. The scales, and those of activations and caches, are then no tensors of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .. import dtypes
from ..errors import WeightopsError, at, short
from .safetensors import StoredTensor

CONFIG_KEY: Final = "quantization_config"
CODES: Final = ("F8_E4M3", "F8_E5M2")
"""Dtypes of 8 bits that are read as weights."""
READ_AS: Final = "BF16"
"""The dtype that they are read as."""

#: How many rows and columns share a scale; ``None``: all of them.
Block = tuple[int | None, int | None]

_SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
_FUSED_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("input_scale", "input_scale_ub", "activation_scale", "qscale_act")
_FUSED_ACTIVATIONS = ("_input_scale", "_activation_scale")
_CACHE = re.compile(r"\.(k_scale|v_scale|[kv]_proj\.output_scale)$")
#: Tensors that only the code which packed them can read.
_PACKED = re.compile(r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|weight_scale(_inv)?|weight_packed)$")
#: Keys of a ``quantization_config`` that list modules whose weights are not quantised.
_LISTS = ("modules_to_not_convert", "ignore")
_NUMBER = re.compile(r"(^|\.)\d+(\.|$)")
_PER_TENSOR: Final[Block] = (None, None)
_PER_ROW: Final[Block] = (1, None)
_MOST_SHOWN = 3
_DEQUANTISE = "dequantise first: load it in transformers, call model.dequantize() and model.save_pretrained(FOLDER)"


@dataclass(frozen=True)
class QuantisedTensor(StoredTensor):
    """A tensor whose elements are numbers of 8 bits times scales. dtype and bytes are those that it is read as.

    Attributes:
        codes: The numbers of 8 bits, of the same shape.
        scales: One for each block, in rows of blocks; ``None``: no number is scaled.
        block: Rows and columns that share a scale. A block at the end of a dimension may be smaller.
        blocked: The layout cuts rows and columns into blocks of a fixed size, rather than by tensor or by row.
        power_of_two: The layout's scales are powers of two.
    """

    codes: StoredTensor
    scales: StoredTensor | None
    block: tuple[int, int]
    blocked: bool = False
    power_of_two: bool = False

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.codes,) if self.scales is None else (self.codes, self.scales)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of one matrix; a tensor of more dimensions is a stack of them."""
        return matrix_of(self.shape)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one matrix's scales."""
        return _grid(self.matrix, self.block)


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """The last two dimensions; a vector is one row."""
    return (shape[-2] if len(shape) > 1 else 1, shape[-1] if shape else 1)


def joined(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str
) -> tuple[dict[str, StoredTensor], Mapping[str, Any] | None]:
    """The tensors of a model, those of 8 bits joined with their scales, and what the configuration says of them.

    Args:
        tensors: As the files hold them.
        config: The content of ``config.json``.
        where: The model's name, for messages.

    Raises:
        WeightopsError: scales are missing or have another shape than the configuration says, or the weights are
            quantised in a way that is not read here.
    """
    layout = quantisation_of(config)
    candidates = _declared(layout, where) if layout is not None else (_PER_TENSOR, _PER_ROW, (128, 128))
    scale_of = {name: _scale_of(name, tensors) for name, tensor in tensors.items() if tensor.dtype in CODES}
    plain = layout is None and not any(scale_of.values())
    problems: list[str] = []
    table: dict[str, StoredTensor] = {}
    left_out = set(filter(None, scale_of.values())) | _of_activations(tensors, scale_of, quantised=layout is not None)
    for name, tensor in tensors.items():
        try:
            if name in scale_of:
                table[name] = _joined(tensor, tensors.get(scale_of[name] or ""), candidates, layout, plain=plain)
            elif name not in left_out:
                table[name] = _unpacked(tensor, tensors)
        except WeightopsError as error:
            problems += error.problems
    if problems:
        more = len(problems) - _MOST_SHOWN
        raise WeightopsError(*problems[:_MOST_SHOWN], *([f"{where}: {more} more such tensors"] if more > 0 else []))
    return table, layout


def quantisation_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration, or that of the text model in it, says of quantised weights; ``None`` if nothing."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        if layout := part.get(CONFIG_KEY):
            return layout if isinstance(layout, Mapping) else {"quant_method": "unknown"}
    return None


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the same model with weights that are not quantised."""
    nested = {key: value for key, value in config.items() if isinstance(value, Mapping) and CONFIG_KEY in value}
    inner = {key: {k: v for k, v in value.items() if k != CONFIG_KEY} for key, value in nested.items()}
    return {key: inner.get(key, value) for key, value in config.items() if key != CONFIG_KEY}


def listing_plain(layout: Mapping[str, Any], names: Mapping[str, bool]) -> dict[str, Any]:
    """A ``quantization_config`` whose list of modules that are not quantised is right for the weights of an output.

    A list that is right already stays as it is. Otherwise entries that name a layer are made anew: layers have moved.

    Args:
        names: Every matrix of the output, and whether it is quantised.

    >>> layout = {"modules_to_not_convert": ["lm_head", "layers.2.gate"]}
    >>> listing_plain(layout, {"layers.1.gate.weight": False, "layers.1.up.weight": True, "lm_head.weight": False})
    {'modules_to_not_convert': ['lm_head', 'layers.1.gate']}
    """
    key = next((key for key in _LISTS if isinstance(layout.get(key), list)), None)
    if key is None:
        return dict(layout)
    entries = [str(entry) for entry in layout[key]]
    of_layers = {name: coded for name, coded in names.items() if _NUMBER.search(name) and name.endswith(".weight")}
    modules = {name.removesuffix(".weight"): coded for name, coded in of_layers.items()}
    if all(_is_listed(module, entries) is not coded for module, coded in modules.items()):
        return dict(layout)
    general = [entry for entry in entries if not _NUMBER.search(entry)]
    plain = (module for module, coded in modules.items() if not coded)
    return {**layout, key: [*general, *(module for module in plain if not _is_listed(module, general))]}


def _is_listed(module: str, entries: list[str]) -> bool:
    """Whether an entry names a module, or one that it is in, or ends its name, as transformers reads the list."""
    return any(f"{module}.".startswith(f"{entry}.") or module.endswith(entry) for entry in entries)


def _declared(layout: Mapping[str, Any], where: str) -> tuple[Block, ...]:
    """The blocks that a ``quantization_config`` allows.

    Raises:
        WeightopsError: its method is not read here, or its block size is no pair of numbers.
    """
    method = layout.get("quant_method")
    reader = _METHODS.get(method) if isinstance(method, str) else None
    try:
        blocks = tuple(reader(layout)) if reader else ()
    except WeightopsError as error:
        raise WeightopsError(*(at(where, problem) for problem in error.problems)) from error
    if not blocks:
        raise WeightopsError(
            f"{where}: quantised weights ({short(str(method or 'unknown'))}, says config.json), which are read only in "
            f"FP8; {_DEQUANTISE}"
        )
    return blocks


def _fp8_blocks(layout: Mapping[str, Any]) -> Iterator[Block]:
    """The method of DeepSeek-V3, as transformers reads it."""
    size = layout.get("weight_block_size", [128, 128])
    if layout.get("expert_dtype", "fp8") != "fp8":
        return
    yield _PER_TENSOR if size is None else _pair(size)


def _compressed_blocks(layout: Mapping[str, Any]) -> Iterator[Block]:
    """The groups of compressed-tensors; nothing if one of them does not quantise weights to 8-bit floats."""
    groups = layout.get("config_groups")
    groups = groups if isinstance(groups, Mapping) else {}
    schemes = [group.get("weights") if isinstance(group, Mapping) else None for group in groups.values()]
    known = [s for s in schemes if isinstance(s, Mapping) and (s.get("num_bits"), s.get("type")) == (8, "float")]
    for scheme in known if len(known) == len(schemes) else ():
        if scheme.get("strategy") == "block":
            yield _pair(scheme.get("block_structure"))
        elif scheme.get("strategy") in ("tensor", "channel"):
            yield _PER_TENSOR if scheme["strategy"] == "tensor" else _PER_ROW


def _pair(size: Any) -> Block:
    if isinstance(size, list) and len(size) == 2 and all(type(length) is int and length > 0 for length in size):
        return size[0], size[1]
    raise WeightopsError(
        f"config.json: {CONFIG_KEY} has blocks of {short(size)}; write two whole numbers, for example [128, 128]"
    )


def _modelopt_blocks(layout: Mapping[str, Any]) -> Iterator[Block]:
    if layout.get("quant_algo") == "FP8":
        yield _PER_TENSOR


_METHODS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[Block]]]] = {
    "fp8": _fp8_blocks,
    "fbgemm_fp8": lambda layout: iter((_PER_ROW,)),
    "compressed-tensors": _compressed_blocks,
    "modelopt": _modelopt_blocks,
}


def stem_of(name: str) -> str:
    """What the name of a weight and those of its scales have in common.

    >>> stem_of("mlp.up_proj.weight"), stem_of("mlp.experts.gate_up_proj")
    ('mlp.up_proj.', 'mlp.experts.gate_up_proj')
    """
    return name.removesuffix("weight") if name.endswith(".weight") else name


def _scale_of(name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    endings = _SCALES if name.endswith(".weight") else _FUSED_SCALES
    return next((scale for ending in endings if (scale := stem_of(name) + ending) in tensors), None)


def _of_activations(tensors: Mapping[str, StoredTensor], codes: Mapping[str, Any], *, quantised: bool) -> set[str]:
    """The scales of what a model computes, which only a model of 8 bits needs."""
    names = {
        stem_of(name) + ending
        for name in codes
        for ending in (_ACTIVATIONS if name.endswith(".weight") else _FUSED_ACTIVATIONS)
    }
    caches = {name for name, tensor in tensors.items() if _CACHE.search(name) and tensor.count == 1}
    return (names & tensors.keys()) | (caches if quantised or codes else set())


def _joined(
    codes: StoredTensor,
    scales: StoredTensor | None,
    candidates: tuple[Block, ...],
    layout: Mapping[str, Any] | None,
    *,
    plain: bool,
) -> QuantisedTensor:
    """One tensor with its scales.

    Raises:
        WeightopsError: the scales are missing, or have another dtype or shape.
    """
    matrix, where = matrix_of(codes.shape), f"{codes.file}: {short(codes.name)}"
    again = "restore or download both files"
    if scales is None:
        if not plain:
            ending = "weight_scale_inv" if codes.name.endswith(".weight") else "_scale_inv"
            missing = f"{short(stem_of(codes.name))}{ending}"
            raise WeightopsError(f"{where} is stored in 8 bits ({codes.dtype}) without scales; {missing} is missing")
        return QuantisedTensor(codes.name, READ_AS, codes.shape, codes.file, codes.offset, codes, None, matrix)
    if scales.dtype not in (*dtypes.FLOATS, "F8_E8M0", "U8"):
        raise WeightopsError(f"{scales.file}: {short(scales.name)}: scales of dtype {scales.dtype}; {again}")
    blocks = [(r or max(matrix[0], 1), c or max(matrix[1], 1)) for r, c in candidates]
    needed = [(*codes.shape[:-2], *_grid(matrix, block)) for block in blocks]
    for declared, block, shape in zip(candidates, blocks, needed, strict=True):
        if _without_ones(shape) == _without_ones(scales.shape):
            blocked, power = None not in declared, layout is not None and layout.get("scale_fmt") == "ue8m0"
            return QuantisedTensor(
                codes.name, READ_AS, codes.shape, codes.file, codes.offset, codes, scales, block, blocked, power
            )
    sizes = " or ".join(f"{rows} x {columns}" for rows, columns in blocks)
    wanted = " or ".join(str(shape) for shape in needed)
    says = f"config.json says blocks of {sizes}" if layout is not None else f"for blocks of {sizes}"
    raise WeightopsError(
        f"{scales.file}: {short(scales.name)} has shape {scales.shape}, but {short(codes.name)} of shape "
        f"{codes.shape} needs {wanted} ({says}); {again}"
    )


def _unpacked(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    """A tensor that is not of 8 bits.

    Raises:
        WeightopsError: it belongs to weights that are quantised in another way.
    """
    if _PACKED.search(tensor.name):
        weight = tensors.get(f"{tensor.name.rpartition('.')[0]}.weight")
        stored = f"; {short(weight.name)} is stored as {weight.dtype}" if weight else ""
        raise WeightopsError(
            f"{tensor.file}: {short(tensor.name)} belongs to quantised weights that are not in FP8{stored}; "
            f"{_DEQUANTISE}"
        )
    return tensor


def _grid(matrix: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-matrix[0] // block[0]), -(-matrix[1] // block[1])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of 1: scalars and columns are written in several ways, with the same bytes."""
    return tuple(length for length in shape if length != 1)
