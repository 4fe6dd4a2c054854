"""Linear layers whose weights are held in 4 bits, by bitsandbytes: NF4 with rounded scales (QLoRA, arXiv 2305.14314).

They compute in our layers and not in ``bitsandbytes.nn.Linear4bit``, which on some CPUs rounds the scales once more
when it first runs without gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightops.extras import needed
from weightops.recipes.sparsity.sparse_linear import PackedSparseLinear


def round_layers(model: Any, counts: Mapping[str, int]) -> None:
    """Put layers over weights of 4 bits in the place of all linear ones but the head; everything else is fp32, frozen.

    Weights are rounded on the device where they are; training starts from the CPU, so that all processes and resumed
    runs train over the same numbers.

    Args:
        counts: Trained entries by the layer's name; the other layers are frozen.

    Raises:
        WeightopsError: bitsandbytes is not installed.
    """
    needed("bitsandbytes", "bitsandbytes", "quantised")
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    for name in names:
        linear = model.get_submodule(name)
        layer = PackedSparseLinear(linear, counts.get(name, 0), packed(linear.weight), unpacked)
        model.set_submodule(name, layer)
    model.float()


def packed(weight: Tensor) -> Any:
    """A weight [rows, columns] in 4 bits: a parameter that knows its scales, and takes them along to other devices."""
    from bitsandbytes.nn import Params4bit

    whole = weight.detach().float()
    return Params4bit(whole, requires_grad=False, quant_type="nf4", compress_statistics=True).to(whole.device)


def unpacked(weight: Any) -> Tensor:
    """A packed weight as fp32, [rows, columns]."""
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return whole
