"""Checkpoints and deltas in one line, for a prompt or a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable

from .changes import Change, Difference
from .rules import Rule


class OneLine:
    """A value that a notebook shows in the one line of its ``repr``."""

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def sum_of(changes: Iterable[Change]) -> str:
    """The changes as a sum: ``guard - base``, ``0.5 * (a - base) - adapter``.

    A change of only some tensors is followed by how they were chosen, as in ``(guard - base).only('mlp')``.
    """
    text = ""
    for change in changes:
        sign = "-" if change.coefficient < 0 else "+"
        text += f" {sign} {_product(change)}" if text else ("-" if sign == "-" else "") + _product(change, first=True)
    return text or "0"


def share_of(changes: Iterable[Change]) -> str:
    """How many tensors are changed, of how many that could be: ``210 of 272 tensors``."""
    changes = tuple(changes)
    changed = {name for change in changes for name in change.names()}
    possible = {name for change in changes for name in Change(change.of).names()}
    return _tensors(len(possible)) if changed == possible else f"{len(changed)} of {_tensors(len(possible))}"


def _tensors(count: int) -> str:
    return f"{count} tensor" + "s" * (count != 1)


def _product(change: Change, *, first: bool = False) -> str:
    if isinstance(change.of, Difference):
        what, compound = f"{change.of.minuend.spec} - {change.of.subtrahend.spec}", True
    else:
        what, compound = change.of.spec, False
    size = abs(change.coefficient)
    alone = first and size == 1 and change.coefficient > 0 and not change.rules
    what = f"({what})" if compound and not alone else what
    return (f"{size:g} * " if size != 1 else "") + what + "".join(map(_rule, change.rules))


def _rule(rule: Rule) -> str:
    by = "function" if callable(rule.by) else repr(dict(rule.by) if isinstance(rule.by, tuple) else rule.by)
    return f" * {by}" if rule.kind == "scaled" else f".{rule.kind}({by})"
