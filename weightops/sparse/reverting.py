"""A sparse delta put on its base, and taken off again: both byte for byte, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..algebra.changes import Change
from ..algebra.checkpoint import Checkpoint, Delta, package
from ..algebra.opening import Opener, open_added
from ..engine.tally import Tally
from ..errors import WeightopsError
from ..io.sparse_delta import SparseDelta, reverting
from ..output.modelcard import Card, code
from ..output.save import Package


def open_delta(spec: str | Path) -> SparseDelta:
    """Open a sparse delta: its file, or the folder that holds it.

    Raises:
        WeightopsError: it cannot be read, or it is an adapter.
    """
    added = open_added(spec)
    if not isinstance(added, SparseDelta):
        raise WeightopsError(f"{spec}: a LoRA adapter, not a sparse delta; name a delta file")
    return added


def applied(base: str | Path, delta: str | Path) -> Checkpoint:
    """A base with a sparse delta on it; saving refuses any other base than the one that the delta was made for.

    Raises:
        WeightopsError: one of the two cannot be opened, or the base already is a sum.
    """
    open_delta(delta)
    opener = Opener()
    _plain(opener.open(base))
    return opener.open(f"{base}+{delta}")


def reverted(model: str | Path, delta: str | Path) -> tuple[Checkpoint, Package]:
    """The base that a sparse delta was applied to, from the model that it made, and what is saved beside it.

    Saving refuses an output whose changed tensors are not the base's, byte for byte.

    Raises:
        WeightopsError: one of the two cannot be opened, or the delta does not hold the base's entries.
    """
    made, opened = _plain(Opener().open(model)), open_delta(delta)
    turned = reverting(opened, made.source)
    base = Checkpoint(made.source, Delta((Change(turned),)))
    text = f"{code(made.spec)} without the sparse delta {code(opened.spec)}: the base that it was applied to."
    return base, replace(package(base), card=Card("A reverted model", text), accept=_is_base(opened, made.spec))


def _plain(model: Checkpoint) -> Checkpoint:
    if model.delta.changes:
        raise WeightopsError(f"{model.spec}: name a plain model; save this one first and name its folder")
    return model


def _is_base(delta: SparseDelta, spec: str) -> Callable[[Tally], None]:
    """Refuse what was computed where it is not the base that the delta was made for."""

    def check(tally: Tally) -> None:
        wrong = [n for n, tensor in sorted(delta.tensors.items()) if tally.outputs.get(n) != tensor.base_digest]
        if wrong:
            raise WeightopsError(
                f"{wrong[0]}: putting the entries of {delta.spec} back into {spec} does not give its base "
                f"({len(wrong)} of {len(delta.tensors)} tensors differ); name the model that the delta was applied to"
            )

    return check
