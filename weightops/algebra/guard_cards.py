"""Keeps a guard's card in the algebra: ``target + (guard - base)`` gets the card of the guard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import WeightopsError
from ..io.companions import GUARD_CARD
from ..io.folder import read_json
from ..io.opened import Source
from ..io.tokenizer import tokenizer_of
from ..io.weights import Weights


@dataclass(frozen=True)
class CarriedCard:
    """The guard's card that a checkpoint gets, or the reason why it gets none.

    Attributes:
        files: ``guard.json``, if the checkpoint gets one.
        notes: Why the checkpoint gets none, although one of its terms has one.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def warn(self) -> None:
        """Show the notes as warnings, for callers that do not show the plan."""
        for note in self.notes:
            warnings.warn(note, stacklevel=3)


def carried_card(target: Weights, shares: Mapping[Source, float]) -> CarriedCard:
    """The card of the guard that is added, if its labels are also tokens of the target.

    Args:
        target: The model whose tokenizer the output gets.
        shares: The coefficient of each source. Sources that are subtracted give no card. The target's own card is
            used only if nothing that is added has one.
    """
    guards = [source for source, share in shares.items() if share > 0 and _has_card(source)]
    added = [source for source in guards if source != target] or guards
    if len(added) > 1:
        specs = " and ".join(source.spec for source in added)
        return CarriedCard(notes=(f"{GUARD_CARD} is not written: {specs} each have one; copy the one that applies",))
    if not added:
        return CarriedCard()
    folder = added[0].folder
    try:
        why = None if folder is None else _misfit(read_json(folder / GUARD_CARD), target)
        if folder is not None and why is None:
            return CarriedCard({GUARD_CARD: (folder / GUARD_CARD).read_bytes()})
    except WeightopsError as error:
        why = error.problems[0]
    return CarriedCard(notes=(f"{GUARD_CARD} of {added[0].spec} is not written: {why}",))


def _has_card(source: Source) -> bool:
    return source.folder is not None and (source.folder / GUARD_CARD).is_file()


def _misfit(card: Mapping[str, Any], target: Weights) -> str | None:
    """Why the card is wrong for the target: its label tokens must begin the same words in the target's vocabulary."""
    labels, ids = card.get("labels"), card.get("label_ids")
    if not (isinstance(labels, list) and isinstance(ids, list) and len(labels) == len(ids) == 2):
        return "it is not a guard's card; train the guard again or restore the file"
    tokenizer = tokenizer_of(target)
    for label, number in zip(labels, ids, strict=True):
        fits = type(number) is int and 0 <= number < tokenizer.get_vocab_size()
        token = tokenizer.decode([number], skip_special_tokens=False).strip() if fits else ""
        if not token or not str(label).strip().startswith(token):
            meaning = f"{token!r}" if token else "no token"
            return (
                f"label {label!r} is token {number} of the guard, but that is {meaning} in {target.spec}; "
                "compose_guard finds or copies the label's token"
            )
    return None
