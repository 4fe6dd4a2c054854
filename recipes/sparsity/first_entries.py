"""Which entries of a weight train at first: drawn, of large gradient, or large in a low-rank approximation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightops.adapters.low_rank import leading
from weightops.ops.draw import key
from weightops.recipes.sparsity.largest_entries import top_of_blocks
from weightops.recipes.sparsity.weight_gradient import BLOCK


def drawn(elements: int, count: int, seed: int, name: str) -> Tensor:
    """``count`` flat positions, each set of them equally likely, sorted; decided by the seed and the tensor's name.

    Memory grows with ``count`` only.
    """
    generator = torch.Generator().manual_seed(key(seed, name, 0) >> 1)
    if 2 * count > elements:
        return torch.randperm(elements, generator=generator)[:count].sort().values
    chosen = torch.empty(0, dtype=torch.long)
    while len(chosen) < count:
        more = torch.randint(elements, (count,), generator=generator)
        chosen = torch.unique(torch.cat([chosen, more]))
    return chosen[torch.randperm(len(chosen), generator=generator)[:count]].sort().values


def large_after_rank_reduction(weight: Tensor, count: int, rank: int, name: str) -> Tensor:
    """The entries of largest magnitude in the best approximation of a weight of some rank (LIFT, arXiv 2506.00772).

    Args:
        weight: [rows, columns].
        rank: Of the approximation, which is computed some rows at a time.
        name: Draws the start of the search for singular vectors.
    """
    parts = leading(weight.detach().float(), rank, name)
    step = max(1, BLOCK // weight.shape[1])

    def blocks() -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(weight), step):
            yield first, (parts.left[first : first + step] * parts.values) @ parts.right.T

    return top_of_blocks(blocks(), count)[0]
