"""What stands behind a routine, an objective or a pass: the constant ``EVIDENCE`` of its module.

The table of ``docs/recipes.md`` is written from these constants and from the first line of each module's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["measured here", "implemented and tested", "in the spirit of"]
"""``measured here``: its effect on a real model is in our pages. ``implemented and tested``: it computes what its paper
says, which tests check. ``in the spirit of``: the paper leaves open what is needed, and the choices are ours."""


@dataclass(frozen=True)
class Evidence:
    """How far one way to train is backed.

    Attributes:
        status: How far.
        papers: Their numbers at arXiv; none for common practice, or what is ours.
        page: The page of docs/ that explains it.
    """

    status: Status
    papers: tuple[str, ...] = ()
    page: str | None = None
