"""Tensor dtypes by their safetensors names."""

from __future__ import annotations

from typing import Final

#: Bits of an element, for every dtype of the safetensors format.
BITS: Final = {
    "BOOL": 8,
    "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

#: Dtypes that the engine computes with; tensors of other dtypes are copied, or refused as quantised.
FLOATS: Final = ("F16", "BF16", "F32", "F64")

#: Float dtypes so narrow that weights in them need a separate scale.
QUANTISED_FLOATS: Final = ("F8_E5M2", "F8_E4M3", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")

#: The names that torch, transformers and mergekit use.
FROM_TORCH: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
TO_TORCH: Final = {short: long for long, short in FROM_TORCH.items()}

#: An output whose weights are in FP8 with scales, as a source stores them; it is given where a dtype is.
FP8_BLOCK: Final = "fp8-block"


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor.

    >>> nbytes("BF16", (2, 3))
    12
    """
    return (count(shape) * BITS[dtype] + 7) // 8


def itemsize(dtype: str) -> int:
    """Bytes of one element; the dtype must have whole bytes."""
    return BITS[dtype] // 8


def count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor."""
    elements = 1
    for length in shape:
        elements *= length
    return elements
