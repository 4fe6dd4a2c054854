"""Tiny models in FP8 as transformers writes them: numbers of 8 bits, and scales for blocks of rows and columns."""

from __future__ import annotations

from typing import Any

import tiny_models as tiny
import torch

BLOCK = (16, 8)
"""Small, so that tiny tensors have several blocks."""


def quantisation(block: tuple[int, int] | None = BLOCK, **keys: Any) -> dict[str, Any]:
    """The ``quantization_config`` of DeepSeek-V3's layout; without a block one scale for each tensor."""
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block and list(block)} | keys


def quantised(tensor: torch.Tensor, block: tuple[int, int] | None = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in FP8 and its scales; a block at an edge may be smaller."""
    rows, columns = block or tensor.shape
    padded = torch.nn.functional.pad(tensor.float(), (0, -tensor.shape[1] % columns, 0, -tensor.shape[0] % rows))
    blocks = padded.unfold(0, rows, rows).unfold(1, columns, columns)
    scales = blocks.abs().amax((-2, -1)) / 448
    return (tensor.float() / spread(scales, block or tensor.shape, tensor.shape)).to(torch.float8_e4m3fn), scales


def spread(scales: torch.Tensor, block: tuple[int, ...], shape: torch.Size) -> torch.Tensor:
    """The scale of each element."""
    each = scales.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return each[: shape[0], : shape[1]]


def is_quantised(name: str) -> bool:
    """Whether the tiny model stores this tensor in FP8: those of linear layers, not the head."""
    return name.endswith("_proj.weight")


def in_fp8(tensors: tiny.Tensors, block: tuple[int, int] | None = BLOCK) -> tiny.Tensors:
    """A model's tensors as they are stored in FP8."""
    stored: tiny.Tensors = {}
    for name, tensor in tensors.items():
        if is_quantised(name):
            stored[name], scales = quantised(tensor, block)
            stored[f"{name}_scale_inv"] = scales if block else scales.reshape(())
        else:
            stored[name] = tensor
    return stored


def plain(stored: tiny.Tensors, block: tuple[int, int] | None = BLOCK) -> tiny.Tensors:
    """The dequantised weights of a model in FP8, bf16: the reference."""
    weights: tiny.Tensors = {}
    for name, tensor in stored.items():
        if f"{name}_scale_inv" in stored:
            scales = stored[f"{name}_scale_inv"]
            each = spread(scales if block else scales.reshape(1, 1), block or tuple(tensor.shape), tensor.shape)
            weights[name] = (tensor.float() * each).to(torch.bfloat16)
        elif not name.endswith("_scale_inv"):
            weights[name] = tensor
    return weights


def config_of(block: tuple[int, int] | None = BLOCK, **keys: Any) -> dict[str, Any]:
    """A ``config.json`` of a model in FP8."""
    return {"model_type": "llama", "quantization_config": quantisation(block, **keys)}
