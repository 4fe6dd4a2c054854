"""A model of a merge with the sample of its own text, run part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..layerwise.hidden_states import HiddenStates
from ..layerwise.layered_model import LayeredModel, LoadedPart

#: Called after each row that a part has run on.
Advance = Callable[[], None]

#: The number of a part, and its merged tensors by the names of the checkpoint, fp32 or fp64.
MergedPart = tuple[int, Mapping[str, Tensor]]
MergedParts = Iterator[MergedPart]


@dataclass(frozen=True, eq=False)
class SampledModel:
    """A model, its sample and its share.

    Attributes:
        ids: Token ids of each row.
        share: Its weight among the models; all shares sum to 1.
    """

    model: LayeredModel
    ids: tuple[tuple[int, ...], ...]
    share: float

    @property
    def tokens(self) -> int:
        """How many tokens the sample has."""
        return sum(map(len, self.ids))

    def forward(
        self, part: LoadedPart, source: HiddenStates | None, target: HiddenStates | None, advance: Advance
    ) -> None:
        """Run a part on every row.

        Args:
            source: Its inputs; none for the embeddings.
            target: Where its outputs go, which may be ``source``; none if nobody needs them.
            advance: Called after each row.
        """
        for row, ids in enumerate(self.ids):
            output = part.run(ids, None if source is None else source[row].to(self.model.device))
            if target is not None:
                target[row] = output
            advance()
