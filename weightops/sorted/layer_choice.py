"""Which layers to keep: those that change the hidden states most.

Source: Men et al. 2024, ShortGPT, arXiv 2403.03853: layers of the least block influence are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.checkpoint import Checkpoint
from ..errors import Message, Remedy, WeightopsError
from ..layerwise.block_influence import block_influence
from ..layerwise.calibration import calibration_tokens
from ..layerwise.layered_model import LayeredModel
from ..rows.row import Row


def influence_of_layers(
    model: Checkpoint, rows: Sequence[Row], *, trust_remote_code: bool = False
) -> tuple[float, ...]:
    """The block influence of each layer on a sample of rows, in [0, 2]; one layer is in memory at a time.

    Args:
        model: The whole model.
        rows: With ``messages``, ``prompt`` and ``completion``, or ``text``; 64 of them are drawn.
        trust_remote_code: As for :func:`~weightops.algebra.loading.load`.

    Raises:
        WeightopsError: rows that cannot be read, or a model that is not a plain stack of layers.
    """
    sample = calibration_tokens(model, rows, trust_remote_code=trust_remote_code)
    return block_influence(LayeredModel(model, trust_remote_code=trust_remote_code), sample.ids)


def most_influential(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """The layers to keep, rising; of equal layers the earlier ones are kept (ours).

    Raises:
        WeightopsError: not 1 to all but one.

    >>> most_influential([0.9, 0.1, 0.1, 0.5], 3)
    (0, 1, 3)
    """
    total = len(influences)
    if not 1 <= count < total:
        problem = f"{count} layers of {total} cannot be kept; a cut keeps 1 to {total - 1}"
        raise WeightopsError(Message(problem, Remedy("choose another number of {}", "layers")))
    order = sorted(range(total), key=lambda layer: (-influences[layer], layer))
    return tuple(sorted(order[:count]))
