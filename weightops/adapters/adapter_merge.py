"""Several LoRA adapters of one base merged into one adapter, from their factors alone.

``merge_adapters(["./a", "./b"], method="ties", settings={"density": 0.3}).save("./ab")``. Adapters may differ in rank,
scale and targets; one that does not change a weight adds nothing to it. What each space computes is written at
:data:`.adapter_checks.SPACES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import dtypes
from ..anatomy.layers import layer_of
from ..anatomy.place import Place
from ..engine.torch_threads import one_torch_thread
from ..errors import WeightopsError, attempt_all
from ..io.adapter import CONFIG, Adapter, LowRankUpdate
from ..io.folder import read_json
from ..io.safetensors import StoredTensor
from ..ops.draw import Draw
from ..ops.registry import Operator, find
from ..output.modelcard import Card, Paper, code
from . import adapter_checks as checks
from .adapter_folder import AdapterPlan, AdapterTarget, adapter_front, base_id, dtype_problem, in_order, write_adapter
from .core_space import compressed, core_space, inner_products
from .factors import Factors, read_factors, split

_PAPERS = {
    "core": Paper("Core Space", "2509.17786"),
    "compressed": Paper("Compress-then-Merge", "2606.03723"),
    "factors": Paper("Disperse-then-Merge", "2405.13432"),
}


def merge_adapters(
    adapters: Sequence[str | Path],
    *,
    method: str = "linear",
    space: str = "core",
    rank: int | None = None,
    weights: str | Sequence[float] | None = None,
    base: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    command: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AdapterMerge:
    """Plan the merge of several LoRA adapters into one; ``save(out)`` writes it.

    Args:
        adapters: Folders or hub ids, of one base.
        method: A merge method of task vectors, or ``linear``, which sums the updates by their weights and divides by
            the sum of the weights.
        space: One of :data:`.adapter_checks.SPACES`.
        rank: Most rank of an update; by default as much as nothing is lost by.
        weights: A number for each adapter, or one of :data:`.adapter_checks.WEIGHTINGS`; by default the method's
            own.
        base: The base of all adapters, where they name it differently.
        seed: Of methods that draw at random.
        dtype: Of the factors that are written.
        command: The command line, for the model card.
        settings: Of the method, such as ``{"density": 0.3}``.

    Raises:
        WeightopsError: everything that is wrong with the adapters and the settings.
    """
    problems = [*checks.space_problems(space, rank), *dtype_problem(dtype)]
    if not adapters:
        problems.append("no adapters to merge; name at least one")
    if problems:
        raise WeightopsError(*problems)
    sources = tuple(attempt_all(partial(checks.opened, str(spec)) for spec in adapters))
    configs = tuple(attempt_all(partial(read_json, source.folder / CONFIG) for source in sources))
    given, how = {name.rstrip("_"): value for name, value in (settings or {}).items()}, find(method)
    if weights is not None:
        given["weight"] = checks.weights_of(weights, sources)
    checked = checks.checked_settings(how, space, given, len(sources))
    problems = [*checks.shape_problems(sources), *checks.carried_problems(sources)]
    if base is None:
        problems += checks.base_problems(sources, configs)
    if space == "factors":
        problems += checks.factor_problems(sources)
    if problems:
        raise WeightopsError(*problems)
    return AdapterMerge(sources, configs, how, tuple(sorted(checked.items())), space, rank, base, seed, dtype, command)


@dataclass(frozen=True, eq=False)
class AdapterMerge:
    """A merge of adapters as a value; lazy until :meth:`save` or :meth:`update`."""

    adapters: tuple[Adapter, ...]
    configs: tuple[Mapping[str, Any], ...]
    method: Operator
    settings: tuple[tuple[str, Any], ...]
    space: str
    rank: int | None
    base: str | None
    seed: int
    dtype: str
    command: str | None = None

    @cached_property
    def targets(self) -> tuple[AdapterTarget, ...]:
        """Every weight that some adapter changes."""
        first = {name: update for adapter in reversed(self.adapters) for name, update in adapter.updates.items()}
        return tuple(
            AdapterTarget(name, "lora_embedding_" in update.left.name, update.transposed)
            for name, update in sorted(first.items())
        )

    @cached_property
    def coefficients(self) -> tuple[float, ...] | None:
        """Of each adapter's update, where the method is one linear combination for all weights."""
        given = dict(self.settings)
        if self.method.affine is not None:
            return tuple(self.method.affine_coefficients(given, len(self.adapters)) or ())
        combine = self.method.combination(given)
        if self.method.reads != "model" or combine is None:
            return None
        gram = torch.zeros(len(self.adapters), len(self.adapters), dtype=torch.float64)
        with one_torch_thread():
            for _, one in in_order(lambda target: inner_products(self._read(target)), self.targets, 1):
                gram += one
        return self._finite(combine(gram.numpy()).tolist())

    def _finite(self, coefficients: list[float]) -> tuple[float, ...]:
        if not all(map(math.isfinite, coefficients)):
            raise WeightopsError(f"{self.method.name} finds no coefficients for these adapters; are they all zero?")
        return tuple(coefficients)

    def update(self, target: AdapterTarget) -> Factors:
        """The merged factors of one weight, fp64.

        Raises:
            WeightopsError: a factor holds NaN or Inf, or the method refuses its settings.
        """
        updates = self._read(target)
        if self.space == "factors":
            return self._factors_apart(updates)
        if self.space == "product":
            return self._product(updates)
        space = core_space(updates)
        if self.rank is not None:
            space = compressed(space, self.rank)
        merged = self._merged(space.cores, target)
        if not torch.isfinite(merged).all():
            raise WeightopsError(f"{target.name}: {self.method.name} gives NaN or Inf; change its settings")
        return split(space.left, merged, space.right)

    def plan(self) -> AdapterPlan:
        """What saving writes."""
        first = self.configs[0]
        kept = {key: first[key] for key in ("fan_in_fan_out", "bias", "task_type", "modules_to_save") if key in first}
        named = base_id(self.base) if self.base is not None else first.get("base_model_name_or_path")
        revisions = {str(config.get("revision")) for config in self.configs}
        revision = first.get("revision") if len(revisions) == 1 and self.base is None else None
        config = {"base_model_name_or_path": named, "revision": revision, **kept}
        carried = checks.carried_tensors(self.adapters)
        return AdapterPlan(
            self.targets, config, tuple(dict.fromkeys(self.adapters)), (), self._recipe(), self._card(named),
            self._most_bytes(carried), self.dtype, carried, tuple(self._notes()),
        )  # fmt: skip

    def save(
        self, out: str | Path, *, overwrite: bool = False, threads: int | None = None, progress: bool = True
    ) -> Path:
        """Write the adapter as a PEFT folder.

        Raises:
            WeightopsError: the place cannot be written, or writing failed; ``out`` is then as it was.
        """
        self.coefficients  # noqa: B018  # a pass over all adapters for some methods, before threads want it
        return write_adapter(
            self.plan(), self.update, Path(out), overwrite=overwrite, threads=threads, progress=progress
        )

    def most_rank(self, target: AdapterTarget) -> int:
        """The rank that the merged update of a weight can have."""
        updates = [adapter.updates[target.name] for adapter in self.adapters if target.name in adapter.updates]
        shape = updates[0].left.shape[0], updates[0].right.shape[1]
        ranks = [update.left.shape[1] for update in updates]
        together = max(ranks) if self.space == "factors" else sum(ranks)
        return min(*shape, together, self.rank or together) if self.space != "factors" else together

    def _read(self, target: AdapterTarget) -> list[Factors | None]:
        """Each adapter's factors of a weight; an adapter that is named twice is read once."""
        read: dict[LowRankUpdate, Factors] = {}
        updates = [adapter.updates.get(target.name) for adapter in self.adapters]
        for update in updates:
            if update is not None and update not in read:
                read[update] = read_factors(update)
        return [None if update is None else read[update] for update in updates]

    def _factors_apart(self, updates: Sequence[Factors | None]) -> Factors:
        pairs = [(c, u) for c, u in zip(self.coefficients or (), updates, strict=True) if u is not None]
        return Factors(sum_of(c * u.left for c, u in pairs), sum_of(c * u.right for c, u in pairs))

    def _product(self, updates: Sequence[Factors | None]) -> Factors:
        """The weighted sum of the products, by QR of the stacked factors."""
        coefficients = self.coefficients or self._combined(inner_products(updates))
        pairs = [(c, u) for c, u in zip(coefficients, updates, strict=True) if u is not None]
        left, b = torch.linalg.qr(torch.cat([c * u.left for c, u in pairs], 1))
        right, a = torch.linalg.qr(torch.cat([u.right for _, u in pairs]).T)
        return split(left, b @ a.T, right, self.rank)

    def _combined(self, gram: Tensor) -> tuple[float, ...]:
        combine = self.method.combination(dict(self.settings))
        assert combine is not None, self.method.name  # checked in merge_adapters
        return self._finite(combine(gram.numpy()).tolist())

    def _merged(self, cores: Tensor, target: AdapterTarget) -> Tensor:
        """The method on the small matrices, [adapters, k, l] to [k, l]."""
        if self.coefficients is not None:
            return sum_of(c * core for c, core in zip(self.coefficients, cores, strict=True))
        given = {self.method.parameter(name).argument: value for name, value in self.settings}
        if "draw" in self.method.fills:
            given["draw"] = Draw(self.seed, target.name)
        if "place" in self.method.fills:
            given["place"] = self._place(target.name)
        return self.method.function(cores, **given)  # type: ignore[no-any-return]

    def _place(self, name: str) -> Place:
        here = layer_of(name)
        if here is None:
            return Place(name)
        others = [layer_of(target.name) for target in self.targets]
        return Place(name, here.index, 1 + max(one.index for one in others if one and one.stack == here.stack))

    def _recipe(self) -> dict[str, Any]:
        return {
            "kind": "adapter merge",
            "adapters": [adapter.spec for adapter in self.adapters],
            "method": self.method.name,
            "settings": dict(self.settings),
            "space": self.space,
            "rank": self.rank,
            "seed": self.seed,
            "dtype": self.dtype,
        }

    def _card(self, named: str | None) -> Card:
        text = (
            f"{len(self.adapters)} LoRA adapters of {code(str(named))} merged by `{self.method.name}` ({self.space})."
        )
        key = "compressed" if self.space == "core" and self.rank is not None else self.space
        front = adapter_front(named)
        papers = (_PAPERS[key],) if key in _PAPERS else ()
        return Card("A merged LoRA adapter", text, ("lora",), papers, self.command, front)

    def _most_bytes(self, carried: Mapping[str, StoredTensor]) -> int:
        size = dtypes.itemsize(dtypes.FROM_TORCH[self.dtype])
        total = sum(tensor.nbytes for tensor in carried.values())
        for target in self.targets:
            update = next(a.updates[target.name] for a in self.adapters if target.name in a.updates)
            total += self.most_rank(target) * (update.left.shape[0] + update.right.shape[1]) * size
        return total

    def _notes(self) -> list[str]:
        notes = []
        lossless = max((self.most_rank(target) for target in self.targets), default=0)
        if self.rank is not None and self.rank > lossless:
            notes.append(f"rank {self.rank} is more than the merged updates have; they get {lossless} at most")
        kinds = {str(config.get("task_type")) for config in self.configs}
        if len(kinds) > 1:
            notes.append(f"the adapters name different tasks ({', '.join(sorted(kinds))}); the first one's is written")
        return notes


def sum_of(tensors: Any) -> Tensor:
    """The sum of at least one tensor."""
    first, *rest = tensors
    for tensor in rest:
        first = first + tensor
    return first  # type: ignore[no-any-return]
