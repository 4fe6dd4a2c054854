"""The optimizer of sparse layers: it moves their trained entries, and exchanges entries between steps.

Everything that training changes is in its state, also in the middle of a phase, so a checkpoint needs no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weightops.engine.torch_threads import one_torch_thread
from weightops.recipes.sparsity.entry_rules import COLUMNS, ROWS, EntryAdam, EntryRule, EntrySm3
from weightops.recipes.sparsity.first_entries import drawn, large_after_rank_reduction
from weightops.recipes.sparsity.gathering import Phase, averaged, is_finite, largest_squares, steepest
from weightops.recipes.sparsity.largest_entries import top_of_outer_product
from weightops.recipes.sparsity.regrowth import Exchange, Regrowth, exchange, exchanged
from weightops.recipes.sparsity.sparse_linear import SparseLinear
from weightops.recipes.sparsity.weight_gradient import WeightGradient

Select = Literal["random", "gradient", "lift", "ag", "ma"]
"""How entries are chosen: drawn; of largest gradient; of largest magnitude after rank reduction (LIFT); SpIEL-AG, by
accumulated gradients; SpIEL-MA, by the accumulators of SM3. The first three never exchange any."""

_LEARNED = "learned"


@dataclass(frozen=True)
class EntrySelection:
    """How entries are chosen.

    Attributes:
        by: The way.
        regrowth: When AG and MA exchange entries.
        rank: Of the approximation, for ``lift``.
        seed: Of what is drawn.
    """

    by: Select
    regrowth: Regrowth
    rank: int = 128
    seed: int = 0

    @property
    def exchanges(self) -> bool:
        """Whether entries are exchanged during training."""
        return self.by in ("ag", "ma")

    @property
    def waits(self) -> bool:
        """Whether the first gradient chooses the first entries; the published code draws them."""
        return self.by in ("gradient", "ag", "ma") and not self.regrowth.compat


class _Site:
    """A sparse layer, the state of its entries, and what is gathered for the next exchange."""

    def __init__(self, name: str, layer: SparseLinear, rule: EntryRule, selection: EntrySelection) -> None:
        self.name, self.layer, self.rule, self.selection = name, layer, rule, selection
        self.phase: Phase | None = None
        self.state = rule.state(layer.learned.data, *layer.shape)
        count, (rows, columns) = len(layer.learned), layer.shape
        if selection.by == "lift":
            layer.place(large_after_rank_reduction(layer.current(), count, selection.rank, name))
        else:
            layer.place(drawn(rows * columns, count, selection.seed, name))
        self.await_gradient(selection.waits)

    @property
    def waits(self) -> bool:
        """Whether the entries are still to be chosen by a gradient."""
        return self.layer.on_gradient == self._choose

    def await_gradient(self, waits: bool) -> None:
        self.layer.on_gradient = self._choose if waits else self.phase

    def gather(self, phase: Phase | None) -> None:
        """Follow the gradients from now on; ``None`` to end that."""
        self.phase = phase
        if not self.waits:
            self.layer.on_gradient = phase

    def step(self, lr: float) -> None:
        """One step of the rule, and the weight brought up to date."""
        layer = self.layer
        if layer.learned.grad is not None and layer.positions is not None:
            self.rule.step(layer.learned.data, layer.learned.grad, self.state, layer.positions, lr)
            layer.rewrite()

    def exchange(self, share: float) -> None:
        """Give up the entries of smallest learned value for better ones."""
        layer = self.layer
        assert layer.positions is not None
        active = layer.positions.flat
        count = int(len(active) * share)
        if isinstance(self.rule, EntrySm3):
            offered, scores = top_of_outer_product(self.state[ROWS], self.state[COLUMNS], count, active)
            seeds: Mapping[str, Tensor] = {}
        elif isinstance(self.rule, EntryAdam) and self.phase is not None and self.phase.candidates is not None:
            phase = self.phase
            offered, scores = self.phase.candidates.flat, phase.gradients.abs()
            ages = torch.tensor(phase.steps, device=scores.device)
            seeds = self.rule.seeds(phase.gradients / phase.samples, phase.squares / phase.samples, ages)
        else:  # no gradient has reached this layer
            return
        self._replace(exchange(active, layer.learned.data, offered, scores, count), offered, seeds)

    def _replace(self, chosen: Exchange, offered: Tensor, seeds: Mapping[str, Tensor]) -> None:
        layer = self.layer
        assert layer.positions is not None
        entries = {_LEARNED: layer.learned.data, **self.rule.by_entry(self.state)}
        flat, after = exchanged(layer.positions.flat, entries, chosen, offered, seeds)
        layer.place(flat, after.pop(_LEARNED))
        self.state |= after

    def _choose(self, gradient: WeightGradient) -> None:
        """Choose the first entries by the first gradient that is finite."""
        count, none = len(self.layer.learned), torch.empty(0, dtype=torch.long, device=gradient.outputs.device)
        if self.selection.by == "ma":
            squares = largest_squares(gradient)
            if squares is None:
                return
            self.state[ROWS], self.state[COLUMNS] = squares
            flat: Tensor | None = top_of_outer_product(*squares, count, none)[0]
        else:
            flat = steepest(gradient, count)
        if flat is not None:
            self.layer.place(flat)
            self.layer.on_gradient = self.phase

    def state_dict(self) -> dict[str, Any]:
        assert self.layer.positions is not None
        return {
            "positions": self.layer.positions.flat,
            _LEARNED: self.layer.learned.data,
            "rule": dict(self.state),
            "waits": self.waits,
            "phase": None if self.phase is None else self.phase.state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        device = self.layer.weight.device
        self.layer.place(saved["positions"], saved[_LEARNED].to(device))
        self.state = {name: tensor.to(device, copy=True) for name, tensor in saved["rule"].items()}
        self.phase = None
        if saved["phase"] is not None:
            self.phase = Phase(len(self.layer.learned), compat=self.selection.regrowth.compat)
            self.phase.restore(saved["phase"], *self.layer.shape)
        self.await_gradient(saved["waits"])


class EntryOptimizer(torch.optim.Optimizer):
    """Moves the trained entries of sparse layers and exchanges entries (SpIEL, arXiv 2401.16405).

    A step whose gradient is not finite changes nothing, and so does an exchange after a phase with such a gradient.

    Args:
        layers: By name.
        rule: How entries move; SM3 for ``ma``, Adam for the other ways.
        selection: Which entries train.
        lr: Learning rate; a scheduler changes it in ``param_groups``.
        tell: Called with a line for the user.
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLinear],
        rule: EntryRule,
        selection: EntrySelection,
        lr: float,
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__([layer.learned for layer in layers.values()], {"lr": lr})
        self.selection, self.tell, self.steps = selection, tell, 0
        self.sites = [_Site(name, layer, rule, selection) for name, layer in layers.items()]
        self._open_phase()

    @torch.no_grad()
    @one_torch_thread()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, and what is due after it. Its many operations are too short to share them out to threads."""
        self.steps += 1
        gradients = [site.layer.learned.grad for site in self.sites if site.layer.learned.grad is not None]
        if gradients and is_finite(torch.stack([gradient.sum() for gradient in gradients])):
            for site in self.sites:
                site.step(self.param_groups[0]["lr"])
        elif gradients:
            self.tell(f"step {self.steps} is left out: its gradient is not a number")
        self._end_step_of_phase()
        if self.selection.exchanges and self.selection.regrowth.exchanges(self.steps):
            self._exchange()
        self._open_phase()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changed, as tensors, numbers and texts."""
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        return {
            "steps": self.steps,
            "groups": groups,
            "layers": {site.name: site.state_dict() for site in self.sites},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state, and bring the weights up to date with it."""
        self.steps = state_dict["steps"]
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        for site in self.sites:
            site.load_state_dict(state_dict["layers"][site.name])

    def _open_phase(self) -> None:
        if self.selection.by == "ag" and self.selection.regrowth.first_gathering(self.steps + 1):
            for site in self.sites:
                site.gather(Phase(len(site.layer.learned), compat=self.selection.regrowth.compat))

    def _end_step_of_phase(self) -> None:
        phases = [site.phase for site in self.sites if site.phase is not None and site.phase.candidates is not None]
        if not phases:
            return
        within = averaged(torch.cat([phase.within for phase in phases]))
        for phase, part in zip(phases, torch.split(within, [len(phase.within) for phase in phases]), strict=True):
            phase.end_step(part)

    def _exchange(self) -> None:
        if all(site.phase is None or site.phase.finite for site in self.sites):
            share = self.selection.regrowth.share_at(self.steps)
            for site in self.sites:
                site.exchange(share)
        else:
            self.tell(f"no entries are exchanged after step {self.steps}: a gradient before it is not a number")
        for site in self.sites:
            site.gather(None)
