"""Greedy soup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import WeightopsError
from ..strategy import Strategy

if TYPE_CHECKING:
    from ..bench import Bench
    from ..candidate import Candidate


@dataclass(frozen=True)
class Greedy(Strategy):
    """Average the models that help, the best first.

    The greedy recipe of model soups (Wortsman et al. 2022, arXiv 2203.05482, recipe 1): models in the order of their
    own scores, the best first; each is kept if the average with it scores at least as well as the one without it.
    """

    example: ClassVar[str] = "weightops soup greedy ./a ./b ./c --data dev.jsonl --report test.jsonl --out soup"
    paper: ClassVar[tuple[str, str]] = ("Model soups", "2203.05482")

    def evaluations(self, names: Sequence[str]) -> int:
        """One for each model after the first; the average of all may be judged already."""
        return len(names) - 1

    def choose(self, bench: Bench) -> Candidate:
        """The average of the models that were kept."""
        alone = [bench.score(bench.alone(name)) for name in bench.names]
        judged = [(name, one) for name, one in zip(bench.names, alone, strict=True) if not one.dropped]
        if not judged:
            raise WeightopsError("no model could be judged", *(str(one.problem) for one in alone))
        order = sorted(judged, key=lambda pair: pair[1].score, reverse=bench.judge.higher_is_better)
        kept, best = [order[0][0]], order[0][1]
        for name, _ in order[1:]:
            tried = bench.score(bench.mean([*kept, name]))
            if not tried.dropped and not bench.better(best, tried):
                kept, best = [*kept, name], tried
        return best.candidate
