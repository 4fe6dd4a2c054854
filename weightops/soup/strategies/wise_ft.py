"""WiSE-FT: between a base and what was tuned from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import Message, Remedy
from ..strategy import Strategy

if TYPE_CHECKING:
    from ..bench import Bench
    from ..candidate import Candidate


@dataclass(frozen=True)
class WiseFt(Strategy):
    """Mix one tuned model with its base, by the best share.

    (1 - alpha) * base + alpha * tuned for each alpha of a grid (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903). What
    tuning on one task cost elsewhere often comes back at an alpha below 1. The picture shows the whole curve. The paper
    fixes alpha at 0.5 where there is nothing to choose it by.

    Attributes:
        alphas: Shares of the tuned model to try, separated by commas; below 0 and above 1 extrapolates.
    """

    example: ClassVar[str] = "weightops soup wise-ft ./tuned --base org/base --data dev.jsonl --out soup"
    paper: ClassVar[tuple[str, str]] = ("WiSE-FT", "2109.01903")
    fewest: ClassVar[int] = 1
    needs_base: ClassVar[bool] = True

    alphas: str = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"

    def problems(self, names: Sequence[str], base: str | None) -> Iterator[str]:
        """Another number of models than one, or a grid that is not one."""
        if len(names) > 1:
            yield Message(f"{len(names)} models; wise-ft mixes one with its base", Remedy("name one of {}", "models"))
        if base in names:
            yield f"{base}: is the base and the tuned model; name two different ones"
        try:
            self._grid()
        except ValueError:
            yield Message(f"alphas {self.alphas!r}: not numbers separated by commas", Remedy("change {}", "alphas"))

    def evaluations(self, names: Sequence[str]) -> int:
        """The alphas other than 0 and 1, which are the base and the tuned model."""
        return len([alpha for alpha in self._grid() if alpha not in (0.0, 1.0)])

    def choose(self, bench: Bench) -> Candidate:
        """The alpha with the best score; of equal ones the first."""
        base, (tuned,) = bench.ingredients.base or "", bench.names
        for alpha in self._grid():
            weights = {base: 1 - alpha, tuned: alpha}
            bench.score(bench.combined(weights, f"alpha {alpha:g}", at=("alpha, the share of the tuned model", alpha)))
        return bench.best_of(bench.scored, "alpha").candidate

    def _grid(self) -> list[float]:
        """The alphas, each once."""
        numbers = [float(text) for text in self.alphas.split(",")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return sorted(set(numbers))
