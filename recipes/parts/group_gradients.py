"""The gradient of groups of rows at the model that training starts from, as short vectors that keep angles.

Of each group a small calibration sample is taken, and the mean gradient per learnt token of a LoRA adapter at its
start. There the factor B is zero, so the gradient of A is zero, and that of B is the weight's gradient times the
transpose of A: itself a random projection of the weight's gradient. A count sketch (Charikar, Chen and Farach-Colton
2002; every entry is added to one of ``width`` sums, with a random sign) makes one vector of all of B. Both are drawn by
the seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from weightops.errors import WeightopsError
from weightops.io.progress import Progress
from weightops.io.quiet import quiet_transformers
from weightops.recipes.objectives.next_token import NextToken
from weightops.recipes.updates.lora import Lora
from weightops.rows.encode import encode
from weightops.rows.row import Row

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def group_gradients(
    base: str,
    groups: Mapping[str, Sequence[Row]],
    *,
    sample: int,
    rank: int,
    tokens: int,
    width: int,
    seed: int,
) -> NDArray[np.float64]:
    """The gradient of each group, sketched, [groups, width].

    Args:
        base: Model that the parts are to be trained from.
        groups: Rows of each group, by its name.
        sample: Most rows of a group that are read.
        rank: Of the adapter.
        tokens: Longest row; a longer one is cut at its end.
        width: Entries of a sketch.
        seed: Draws the sample, A and the sketch.

    Raises:
        WeightopsError: no such model, rows with nothing to learn, or a gradient that is not finite, with the group.
    """
    import numpy as np
    import torch

    from weightops.algebra.loading import load

    with quiet_transformers():
        loaded, tokenizer = load(base, "float32")
        model = Lora(rank=rank, alpha=float(rank)).prepare(loaded, frozenset(), seed).eval()
    objective = NextToken().ready(model, tokenizer, ())
    sketches = []
    with Progress(len(groups), "gradients at the start", unit="group") as progress:
        for name, rows in groups.items():
            chosen = random.Random(f"{seed}/{name}").sample(range(len(rows)), min(sample, len(rows)))
            try:
                encoded = encode(tokenizer, [rows[at] for at in sorted(chosen)], tokens, report=lambda note: None)
            except WeightopsError as error:
                raise WeightopsError(*(f"group {name}: {problem}" for problem in error.problems)) from error
            sketch = _sketch(_mean_gradient(model, objective, encoded), width, seed)
            if not torch.isfinite(sketch).all():
                raise WeightopsError(f"group {name}: its gradient is not a number; check the model and these rows")
            sketches.append(sketch.numpy())
            progress.update()
    return np.stack(sketches)


def _mean_gradient(model: Any, objective: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over all learnt tokens, of the factors B."""
    model.zero_grad(set_to_none=True)
    items = 0
    for row in rows:
        batch = objective.batch([row])
        items += objective.items(batch)
        objective.loss(model, batch).backward()
    return {
        name: parameter.grad / max(items, 1)
        for name, parameter in model.named_parameters()
        if ".lora_B." in name and parameter.grad is not None
    }


def _sketch(gradients: Mapping[str, torch.Tensor], width: int, seed: int) -> torch.Tensor:
    """The count sketch of some tensors, [width], fp64."""
    import torch

    total = torch.zeros(width, dtype=torch.float64)
    for name, gradient in gradients.items():
        draw = torch.Generator().manual_seed(int.from_bytes(blake3(f"{seed}/{name}".encode()).digest()[:7], "big"))
        buckets = torch.randint(width, (gradient.numel(),), generator=draw)
        signs = torch.randint(2, (gradient.numel(),), generator=draw).double() * 2 - 1
        total.index_add_(0, buckets, gradient.detach().cpu().flatten().double() * signs)
    return total
