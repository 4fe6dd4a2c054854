"""The terms of a delta: the difference, adapter or sparse delta, its coefficient, and the tensors it changes."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from ..io.adapter import Adapter
from ..io.opened import AddOn, Source
from ..io.sparse_delta import SparseDelta
from ..io.weights import Weights
from .rules import Rule


@dataclass(frozen=True)
class Difference:
    """minuend - subtrahend, for the tensors that both have."""

    minuend: Weights
    subtrahend: Weights


@dataclass(frozen=True)
class Change:
    """coefficient * (difference, adapter or sparse delta), selected and scaled by its rules."""

    of: Difference | AddOn
    coefficient: float = 1.0
    rules: tuple[Rule, ...] = ()

    def names(self) -> frozenset[str]:
        """Names of the tensors that this changes, with its rules applied."""
        return frozenset(name for name in self.everywhere() if self.at(name))

    def __contains__(self, name: str) -> bool:
        """Whether this changes a tensor, with its rules applied."""
        return name in self.everywhere() and self.at(name) != 0

    def everywhere(self) -> Set[str]:
        """Names of the tensors that this would change without its rules."""
        if isinstance(self.of, Adapter):
            return self.of.updates.keys() | self.of.replaced.keys()
        if isinstance(self.of, SparseDelta):
            return self.of.tensors.keys()
        return self.of.minuend.tensors.keys() & self.of.subtrahend.tensors.keys()

    def at(self, name: str) -> float:
        """The coefficient for a tensor."""
        coefficient = self.coefficient
        for rule in self.rules:
            coefficient *= rule.factor(name)
        return coefficient


def collect(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Combine like terms: one change for each (what is added, rules), reverse differences merged, no zeros."""
    sums: dict[tuple[Difference | AddOn, tuple[Rule, ...]], float] = {}
    for change in changes:
        of, coefficient = change.of, change.coefficient
        if isinstance(of, Difference):
            reverse = Difference(of.subtrahend, of.minuend)
            if (reverse, change.rules) in sums:
                of, coefficient = reverse, -coefficient
        sums[of, change.rules] = sums.get((of, change.rules), 0.0) + coefficient
    return tuple(Change(of, coefficient, rules) for (of, rules), coefficient in sums.items() if coefficient)


def misfits(source: Weights, changes: Iterable[Change]) -> tuple[list[str], list[str]]:
    """Problems and notes for changes of tensors that the source does not have, or that select no tensor."""
    existing, spec = source.tensors.keys(), source.spec
    problems, notes = [], []
    for change in changes:
        if empty := _selects_nothing(change):
            problems.append(empty)
        missing = sorted(change.names() - existing)
        if not isinstance(change.of, Difference) and missing:
            kind = "adapter" if isinstance(change.of, Adapter) else "sparse delta"
            problems.append(
                f"{change.of.spec}: changes {missing[0]}, which {spec} does not have; this {kind} is for another base"
            )
        elif isinstance(change.of, SparseDelta) and change.of.base is not None:
            problems += _other_base(change.of, change.of.base)
        elif isinstance(change.of, Difference) and missing and not change.names() & existing:
            problems.append(f"{spec}: no tensor in common with {change.of.minuend.spec}; are these the right models?")
        elif missing:
            notes.append(
                f"{len(missing)} tensors of the delta are not in {spec} and are left out, the first {missing[0]}"
            )
    return problems, notes


def _other_base(delta: SparseDelta, base: Weights) -> list[str]:
    """A problem if the base that a sparse delta was opened with has a tensor of another shape or dtype."""
    for name, tensor in delta.tensors.items():
        stored = base.tensors.get(name)
        if stored is not None and (stored.shape, stored.dtype) != (tensor.shape, tensor.dtype):
            problem = f"{delta.spec}: {name}: made for {tensor.dtype} {list(tensor.shape)}, but it is {stored.dtype} "
            return [f"{problem}{list(stored.shape)} in {base.spec}; name the base that the delta was made for"]
    return []


def _selects_nothing(change: Change) -> str | None:
    """A problem if a change's selections leave no tensor, which means the pattern is wrong; else ``None``."""
    names, selections = sorted(change.everywhere()), [rule for rule in change.rules if rule.kind != "scaled"]
    if not names or any(all(rule.factor(name) for rule in selections) for name in names):
        return None
    empty = [rule for rule in selections if not any(rule.factor(name) for name in names)]
    rules = " and ".join(f"{rule.kind}({rule.shown})" for rule in empty or selections)
    return (
        f"{rules}: leaves no tensor of the delta, which has {len(names)}, for example {names[0]}; correct the pattern"
    )


def shares(source: Weights, changes: Iterable[Change]) -> dict[Source, float]:
    """The coefficient of each source in a checkpoint, ignoring selections; the checkpoint's own source comes first."""
    sums: dict[Source, float] = {source: 1.0}
    for change in changes:
        if isinstance(change.of, Difference):
            sums[change.of.minuend] = sums.get(change.of.minuend, 0.0) + change.coefficient
            sums[change.of.subtrahend] = sums.get(change.of.subtrahend, 0.0) - change.coefficient
        else:
            sums[change.of] = sums.get(change.of, 0.0) + change.coefficient
    return sums
