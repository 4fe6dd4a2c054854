"""How much each decoder layer changes the hidden states that pass through it.

Source: Men et al. 2024, ShortGPT, arXiv 2403.03853, section 3.1, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..algebra.checkpoint import Checkpoint
from ..errors import WeightopsError
from ..io.progress import Progress
from .hidden_states import HiddenStates
from .layered_model import LayeredModel


def block_influence(
    model: str | Path | Checkpoint | LayeredModel,
    rows: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[float, ...]:
    """The block influence of each decoder layer: 1 minus the mean cosine of its input and its output, over all tokens.

    A layer of small influence is one that ShortGPT removes first. One layer's weights are in memory at a time.

    Args:
        model: What :func:`weightops.open` opens; an opened :class:`LayeredModel` is used as it is.
        rows: Token ids; :func:`~.calibration.calibration_tokens` makes them of rows of data.
        device: Where the layers run.
        progress: Show a bar with the time left on stderr.

    Returns:
        One number for each layer, in [0, 2], the first layer's first.

    Raises:
        WeightopsError: no rows, a model that is not a plain stack of layers, or activations that are not finite.
    """
    if not rows or not all(rows):
        raise WeightopsError("block influence needs rows of at least one token each; give some text")
    layered = model if isinstance(model, LayeredModel) else LayeredModel(model, device=device)
    tokens = sum(map(len, rows))
    influences = []
    bar = Progress(layered.layers * len(rows), "block influence", unit="row", shown=progress)
    with torch.no_grad(), bar, HiddenStates([len(row) for row in rows], layered.width) as hidden:
        with layered.part(0) as embeddings:
            for number, row in enumerate(rows):
                hidden[number] = embeddings.run(row)
        for layer in range(layered.layers):
            cosines = 0.0
            with layered.part(layer + 1) as loaded:
                for number, row in enumerate(rows):
                    before = hidden[number].to(layered.device)
                    after = loaded.run(row, before)
                    cosines += _cosines(before, after)
                    hidden[number] = after
                    bar.update()
            influences.append(1 - cosines / tokens)
    return tuple(influences)


def _cosines(before: Tensor, after: Tensor) -> float:
    """The sum over the tokens of the cosine of two hidden states, in fp64."""
    return float(torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).sum())
