"""When entries are exchanged, how many, and which (SpIEL, arXiv 2401.16405, as its published code does it).

At step t, where t % every == phase, the share xi0 (1 - t / T) of each layer's entries, or by the cosine
xi0 (1 + cos(pi t / T)) / 2, is given up: those of the smallest learned value. As many others take their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightops.recipes.sparsity.largest_entries import among, top


@dataclass(frozen=True)
class Regrowth:
    """When entries are exchanged, and what share of them.

    Attributes:
        every: Steps between two exchanges.
        phase: Steps before an exchange in which gradients are gathered for it; fewer than ``every``.
        share: Share of the entries exchanged at the start of training, xi0.
        falls: How the share falls until the end of training.
        steps: Steps of the training, T.
        compat: As the published code: the first exchange, of all entries, is at step ``phase``, and later phases are
            one step longer. Otherwise the first gradient has chosen the entries, and the first exchange is one round
            later.
    """

    every: int
    phase: int
    share: float
    falls: Literal["linear", "cosine"]
    steps: int
    compat: bool = False

    def exchanges(self, step: int) -> bool:
        """Whether entries are exchanged after a step (the first is 1)."""
        return step <= self.steps and step % self.every == self.phase and (self.compat or step > self.every)

    def gathers(self, step: int) -> bool:
        """Whether gradients are gathered in a step for an exchange that will come."""
        within = step % self.every or self.every
        exchange = step - within + self.phase
        if self.compat and within == self.every:
            within, exchange = 0, step + self.phase
        return within <= self.phase and self.exchanges(exchange)

    def first_gathering(self, step: int) -> bool:
        """Whether a phase begins with a step."""
        return self.gathers(step) and not (step > 1 and self.gathers(step - 1))

    def share_at(self, step: int) -> float:
        """The share of the entries that are exchanged after a step.

        >>> round(Regrowth(20, 5, 0.2, "linear", steps=100).share_at(25), 9)
        0.15
        """
        if self.compat and self.falls == "linear" and step == self.phase:
            return 1.0
        if self.falls == "linear":
            return self.share * (1 - step / self.steps)
        return self.share * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Exchange:
    """Entries that take the places of others.

    Attributes:
        slots: Which of the trained entries are given up, [n].
        picked: Which of the offered entries take their places, [n].
    """

    slots: Tensor
    picked: Tensor


def exchange(active: Tensor, learned: Tensor, offered: Tensor, scores: Tensor, count: int) -> Exchange:
    """Decide which entries are given up, and which take their places.

    The ``count`` entries of smallest magnitude are given up, and the ``count`` best of the offered ones that do not
    stay anyway are taken. An entry that is given up and taken stays as it is. Where too few are offered, the largest of
    those to be given up stay. An offer with score 0 is not taken.

    Args:
        active: Flat positions of the trained entries, [k], sorted.
        learned: Their values, [k].
        offered: Flat positions of candidates, [c], sorted, each once.
        scores: Of the candidates, [c], not negative.
    """
    given_up = torch.sort(learned.abs(), stable=True).indices[:count]
    stays = torch.ones_like(active, dtype=torch.bool)
    stays[given_up] = False
    open_to = ~among(offered, active[stays]) & (scores > 0)
    candidates = open_to.nonzero().reshape(-1)
    taken = candidates[top(scores[candidates], count)]
    slots = given_up[~among(active[given_up], offered[taken])]
    picked = taken[~among(offered[taken], active)]
    return Exchange(slots[: len(picked)], picked)


def exchanged(
    active: Tensor, entries: Mapping[str, Tensor], chosen: Exchange, offered: Tensor, seeds: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The trained entries after an exchange, sorted by position again.

    Args:
        active: Flat positions before, [k].
        entries: What is kept of each trained entry, by name: [k] each.
        offered: Flat positions of the candidates, [c].
        seeds: What a candidate starts with, by the same names: [c] each; 0 where a name is missing.

    Returns:
        Flat positions, [k], sorted, and what is kept of each, in their order.
    """
    flat = active.clone()
    flat[chosen.slots] = offered[chosen.picked].to(flat.dtype)
    order = torch.sort(flat).indices
    after = {}
    for name, values in entries.items():
        changed = values.clone()
        changed[chosen.slots] = seeds[name][chosen.picked].to(values.dtype) if name in seeds else 0
        after[name] = changed[order]
    return flat[order], after
