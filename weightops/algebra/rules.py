"""Rules that select and scale the tensors of a delta by name; they are stored, so that a recipe can list them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import WeightopsError

Selector = str | Callable[[str], bool]
Scale = float | Mapping[str, float] | Callable[[str], float]


class AlgebraError(WeightopsError, TypeError):
    """An operation that makes no sense in weight space."""


@dataclass(frozen=True)
class Rule:
    """The factor of each tensor of a change; 0 leaves the tensor out."""

    kind: Literal["only", "without", "scaled"]
    by: str | Callable[[str], float] | tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        patterns = (
            [self.by] if isinstance(self.by, str) else [p for p, _ in self.by] if isinstance(self.by, tuple) else []
        )
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise AlgebraError(
                    f"{pattern!r} is not a regular expression ({error}); give one, or a function"
                ) from error

    def factor(self, name: str) -> float:
        """The factor for a tensor."""
        if self.kind == "scaled":
            if isinstance(self.by, tuple):
                return next((factor for pattern, factor in self.by if re.search(pattern, name)), 1.0)
            return float(self.by(name))  # type: ignore[operator]
        accepted = re.search(self.by, name) is not None if isinstance(self.by, str) else bool(self.by(name))  # type: ignore[operator]
        return float(accepted is (self.kind == "only"))

    @property
    def shown(self) -> str:
        """The selector, for a message."""
        return getattr(self.by, "__qualname__", "function") if callable(self.by) else repr(self.by)

    def describe(self, names: Iterable[str]) -> Any:
        """The rule as JSON values; a function is described by its factor for each name."""
        if callable(self.by):
            factors = {name: self.factor(name) for name in sorted(names)}
            return {self.kind: {"function": getattr(self.by, "__qualname__", "function"), "factors": factors}}
        return {self.kind: [list(pair) for pair in self.by] if isinstance(self.by, tuple) else self.by}
