"""Sub-models merged as a recipe says: by any merge method of task vectors, into a model or, of adapters, an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from weightops.errors import WeightopsError
from weightops.recipes.parts.trained_parts import TrainedPart

if TYPE_CHECKING:
    from weightops.adapters.adapter_merge import AdapterMerge
    from weightops.algebra.checkpoint import Checkpoint, Delta
    from weightops.algebra.merged import MergedCheckpoint
    from weightops.ops.registry import Operator

MEAN: Final = {"method": "linear"}
"""The weighted mean, which fits every sub-model."""
_OURS: Final = ("method", "space", "rank")
"""Keys that are not the method's own."""


@dataclass(frozen=True)
class PartsMerge:
    """How sub-models become one.

    Attributes:
        method: The merge method.
        settings: Its own settings, without weights.
        space: Where adapters are merged into an adapter, one of :data:`.adapter_checks.SPACES`; none where a model is
            the result.
        rank: Most rank of an update of that adapter; by default as much as nothing is lost by.
    """

    method: Operator
    settings: Mapping[str, Any]
    space: str | None = None
    rank: int | None = None

    @classmethod
    def of(cls, keys: Mapping[str, Any], parts: int, *, adapters: bool, weighed: bool) -> PartsMerge:
        """The merge that a recipe's keys name.

        Args:
            keys: ``method``, its settings, and perhaps ``space`` and ``rank``.
            parts: How many sub-models there are.
            adapters: Whether they are adapters.
            weighed: Whether they count for different amounts.

        Raises:
            WeightopsError: everything that is wrong with the keys.
        """
        from weightops.adapters import adapter_checks as checks
        from weightops.ops.registry import find

        if not isinstance(keys.get("method"), str):
            raise WeightopsError("needs a method; write it as {method: ties, density: 0.5}")
        method, space, rank = find(keys["method"]), keys.get("space"), keys.get("rank")
        settings = {name.rstrip("_"): value for name, value in keys.items() if name not in _OURS}
        space = "core" if space is None and rank is not None else space
        if space is not None and not adapters:
            raise WeightopsError("space and rank are for LoRA adapters, which these parts are not; remove them")
        if "weight" in settings:
            raise WeightopsError("weight follows from the key weigh; remove it here")
        if weighed and not _takes_weights(method):
            raise WeightopsError(f"{method.name} gives no sub-model more weight than another; set weigh to equal")
        if space is not None:
            if problems := checks.space_problems(space, rank):
                raise WeightopsError(*problems)
            checks.checked_settings(method, space, settings, parts)
        else:
            _check_dense(method, settings, parts)
        return cls(method, settings, space, rank)

    def merged(
        self, base: Checkpoint, parts: Sequence[TrainedPart], shares: Mapping[int, float]
    ) -> Checkpoint | MergedCheckpoint | AdapterMerge:
        """The merge of sub-models as a value, to save.

        Args:
            base: What they were trained from.
            parts: Those that are merged.
            shares: What each counts for, by its number; together 1.

        Raises:
            WeightopsError: the method does not merge so many, or adapters and base do not fit.
        """
        weights = [shares[part.number] for part in parts]
        settings = {**self.settings, **({"weight": weights} if _takes_weights(self.method) else {})}
        if self.space is not None:
            from weightops.adapters.adapter_merge import merge_adapters

            return merge_adapters(
                [part.folder for part in parts],
                method=self.method.name, space=self.space, rank=self.rank, settings=settings,
            )  # fmt: skip
        _check_dense(self.method, settings, len(parts))
        coefficients = self.method.affine_coefficients(settings, len(parts))
        changes = [part.change(base) for part in parts]
        if coefficients is not None:
            return _sum(base, coefficients, changes)
        from weightops.algebra.merged import function

        return function(self.method.name)(changes, **settings).on(base)


def _sum(base: Checkpoint, coefficients: Sequence[float], changes: Sequence[Delta]) -> Checkpoint:
    for coefficient, change in zip(coefficients, changes, strict=True):
        base = base + coefficient * change
    return base


def _takes_weights(method: Operator) -> bool:
    return any(parameter.name == "weight" for parameter in method.parameters)


def _check_dense(method: Operator, settings: Mapping[str, Any], parts: int) -> None:
    """Check that a method can merge so many sub-models' changes of a base.

    Raises:
        WeightopsError: it cannot, or a setting is wrong.
    """
    if method.takes == "models" and method.affine is None:
        raise WeightopsError(f"{method.name} merges whole models, not their changes; choose a method of task vectors")
    fewest, most = method.models
    if parts < fewest or (most is not None and parts > most):
        wanted = f"exactly {most}" if fewest == most else f"at most {most}" if parts > fewest else f"at least {fewest}"
        raise WeightopsError(f"{method.name} merges {wanted} sub-models; here are {parts}")
    method.settings(settings, parts)
