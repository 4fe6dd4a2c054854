"""What a merge of adapters is checked for before it is computed, and the weights that follow from the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..algebra.opening import open_adapter
from ..engine.tally import tensor_digest
from ..errors import Message, Remedy, WeightopsError, attempt_all, short
from ..io.adapter import CONFIG, Adapter, LowRankUpdate
from ..io.safetensors import StoredTensor
from ..io.training_log import trained_count
from ..ops.registry import Operator
from .adapter_folder import base_id

#: Where adapters are merged. ``core``: the small matrices of Core Space (arXiv 2509.17786), by any method of task
#: vectors; with a rank, in shared subspaces of that many dimensions (Compress-then-Merge, arXiv 2606.03723).
#: ``product``: the weighted sum of the products, with a rank its best approximation. ``factors``: the weighted sum of
#: the factors A and of the factors B apart, as the code of Disperse-then-Merge (arXiv 2405.13432) does; B1 @ A2 and
#: the other cross terms are then in the result.
SPACES = ("core", "product", "factors")
#: How weights follow from the adapters themselves; ``tokens`` and ``rows`` are those that each was trained on.
WEIGHTINGS = ("uniform", "tokens", "rows")


def opened(spec: str) -> Adapter:
    adapter = open_adapter(spec).changes[0].of
    assert isinstance(adapter, Adapter)
    if not adapter.updates:
        raise WeightopsError(f"{spec}: holds whole tensors only, no low-rank update; there is nothing to merge")
    return adapter


def space_problems(space: str, rank: int | None) -> list[str]:
    problems = []
    if space not in SPACES:
        problems.append(f"unknown space {space!r}; available: {', '.join(SPACES)}")
    if rank is not None and (type(rank) is not int or rank < 1):
        problems.append(f"rank must be a whole number of at least 1, not {rank!r}")
    if space == "factors" and rank is not None:
        what = "the factors of adapters are averaged at their own rank"
        problems.append(Message(what, Remedy("leave out {}", "rank"), Remedy("choose another {}", "space")))
    return problems


def checked_settings(method: Operator, space: str, settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The method's settings, if it can merge updates in that space.

    Raises:
        WeightopsError: it cannot, or a setting is wrong.
    """
    other = Remedy("choose another {}", "method")
    if method.takes == "models" and method.affine is None:
        raise WeightopsError(Message(f"{method.name} merges whole weights, which adapters do not have", other))
    if "base" in method.fills:
        raise WeightopsError(Message(f"{method.name} reads the base's weights, which adapters do not have", other))
    fewest, most = method.models
    if count < fewest or (most is not None and count > most):
        raise WeightopsError(f"{method.name} merges {fewest} to {most or 'any number of'} adapters; {count} given")
    checked = method.settings(settings, count)
    if space == "factors" and method.affine is None:
        what = f"{method.name} cannot merge the factors apart; only linear and task_arithmetic can"
        raise WeightopsError(Message(what, other, Remedy("set {}", "space", "core")))
    if space == "product" and method.affine is None and method.combination(checked) is None:
        what = f"{method.name} is not a linear combination of the updates, so it has no sum of products"
        raise WeightopsError(Message(what, other, Remedy("set {}", "space", "core")))
    return checked


def weights_of(weights: str | Sequence[float], adapters: Sequence[Adapter]) -> tuple[float, ...]:
    """A weight for each adapter; those that follow from the adapters sum to 1."""
    if not isinstance(weights, str):
        return tuple(weights)
    if weights == "uniform":
        return (1 / len(adapters),) * len(adapters)
    if weights not in WEIGHTINGS:
        raise WeightopsError(f"weights {weights!r}: give a number for each adapter, or {', '.join(WEIGHTINGS)}")
    counts = attempt_all(partial(trained_count, adapter.folder, weights) for adapter in adapters)
    return tuple(count / sum(counts) for count in counts)


def base_problems(adapters: Sequence[Adapter], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Problems with the bases that the adapters name: one without a base, or different bases."""
    names = [config.get("base_model_name_or_path") for config in configs]
    state = Remedy("name the base of all of them with {}", "base")
    missing = [
        adapter.spec for adapter, name in zip(adapters, names, strict=True) if not isinstance(name, str) or not name
    ]
    if missing:
        return [Message(f"{missing[0]}: its {CONFIG} names no base", state)]
    homes = {_home(str(name)) for name in names}
    if len(homes) == 1:
        return []
    listed = ", ".join(f"{a.spec} on {short(str(n))}" for a, n in list(zip(adapters, names, strict=True))[:4])
    return [
        Message(f"the adapters belong to different bases ({listed}); only adapters of one base can be merged", state)
    ]


def _home(name: str) -> str:
    try:
        place = Path(name).expanduser()
        return str(place.resolve()) if place.exists() else base_id(name)
    except (OSError, ValueError, RuntimeError):
        return name


def shape_problems(adapters: Sequence[Adapter]) -> list[str]:
    """Weights that two adapters give different shapes or orientations."""
    first: dict[str, tuple[Adapter, LowRankUpdate]] = {}
    problems = []
    for adapter in adapters:
        for name, update in adapter.updates.items():
            other, before = first.setdefault(name, (adapter, update))
            shapes = [(u.left.shape[0], u.right.shape[1]) for u in (before, update)]
            if shapes[0] != shapes[1] or before.transposed != update.transposed:
                problems.append(
                    f"{short(name)}: an update of shape {shapes[0]} in {other.spec}, {shapes[1]} in {adapter.spec}"
                    f"{', transposed in one' * (before.transposed != update.transposed)}; the adapters belong "
                    "to different bases"
                )
    return problems[:20]


def carried_tensors(adapters: Sequence[Adapter]) -> dict[str, StoredTensor]:
    """What the adapters hold whole (modules_to_save, biases, copies of the base's embedding), by key of the file."""
    return {tensor.name: tensor for adapter in reversed(adapters) for tensor in adapter.replaced.values()}


def carried_problems(adapters: Sequence[Adapter]) -> list[str]:
    """Tensors held whole that are not the same in every adapter.

    PEFT puts a copy of the base's matrix (``base_layer``) beside the factors of an embedding or a head. Adapters that
    do not change that matrix have no copy.
    """
    problems = []
    for name in sorted({name for adapter in adapters for name in adapter.replaced}):
        held = [tensor for adapter in adapters if (tensor := adapter.replaced.get(name)) is not None]
        by_all = len(held) == len(adapters) or all(".base_layer." in tensor.name for tensor in held)
        if not by_all or len({(tensor.dtype, tensor.shape, tensor_digest(tensor)) for tensor in held}) > 1:
            problems.append(
                f"{short(name)}: held whole by an adapter (modules_to_save or bias), and not the same in all; merge "
                "the models BASE+ADAPTER instead"
            )
    return problems[:20]


def factor_problems(adapters: Sequence[Adapter]) -> list[str]:
    """Why the factors of these adapters have no mean: different targets, ranks or scales."""
    first, *others = adapters
    remedy = Remedy("set {}", "space", "core")
    for other in others:
        if first.updates.keys() != other.updates.keys():
            name = sorted(first.updates.keys() ^ other.updates.keys())[0]
            return [Message(f"{short(name)}: not changed by every adapter, so its factors have no mean", remedy)]
        for name, update in first.updates.items():
            sizes = [(u.left.shape[1], u.scale) for u in (update, other.updates[name])]
            if sizes[0] != sizes[1]:
                each = " and ".join(f"rank {rank} and scale {scale:g}" for rank, scale in sizes)
                what = f"{short(name)}: {each} in {first.spec} and {other.spec}, so the factors have no mean"
                return [Message(what, remedy)]
    return []
