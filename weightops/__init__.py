"""weightops: a checkpoint is a value.

>>> import weightops as wo
>>> base, guard, target = wo.open("base"), wo.open("guard"), wo.open("target")
>>> guard - base
<Delta: guard - base, 21 tensors>
>>> composed = target + 0.5 * (guard - base).only(r"\\.layers\\.").without("norm")
>>> composed.save("composed", progress=False).name
'composed'
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .errors import WeightopsError
from .version import __version__

if TYPE_CHECKING:
    from .adapters.adapter_merge import merge_adapters
    from .adapters.extraction import extract_adapter
    from .algebra.averaging import average
    from .algebra.checkpoint import Checkpoint, Delta
    from .algebra.cutting import extract
    from .algebra.opening import open_adapter
    from .algebra.opening import open_checkpoint as open  # the face says wo.open, as json says json.load
    from .data_merging.data_merge import merge_with_data
    from .engine.ray_executor import RayExecutor
    from .guard.compose import compose_guard
    from .ops import Draw, PerModel, Place, Range, operator
    from .soup.making import make_soup
    from .sparse.sparse_merge import merge_sparse
    from .sparse.top_entries import extract_sparse

__all__ = [
    "Checkpoint",
    "Delta",
    "Draw",
    "PerModel",
    "Place",
    "Range",
    "RayExecutor",
    "WeightopsError",
    "__version__",
    "average",
    "compose_guard",
    "extract",
    "extract_adapter",
    "extract_sparse",
    "make_soup",
    "merge_adapters",
    "merge_sparse",
    "merge_with_data",
    "open",
    "open_adapter",
    "operator",
]

_HOMES = {
    "Checkpoint": ("algebra.checkpoint", "Checkpoint"),
    "Delta": ("algebra.checkpoint", "Delta"),
    "Draw": ("ops", "Draw"),
    "PerModel": ("ops", "PerModel"),
    "Place": ("ops", "Place"),
    "Range": ("ops", "Range"),
    "RayExecutor": ("engine.ray_executor", "RayExecutor"),
    "average": ("algebra.averaging", "average"),
    "compose_guard": ("guard.compose", "compose_guard"),
    "extract": ("algebra.cutting", "extract"),
    "extract_adapter": ("adapters.extraction", "extract_adapter"),
    "extract_sparse": ("sparse.top_entries", "extract_sparse"),
    "make_soup": ("soup.making", "make_soup"),
    "merge_adapters": ("adapters.adapter_merge", "merge_adapters"),
    "merge_sparse": ("sparse.sparse_merge", "merge_sparse"),
    "merge_with_data": ("data_merging.data_merge", "merge_with_data"),
    "open": ("algebra.opening", "open_checkpoint"),
    "open_adapter": ("algebra.opening", "open_adapter"),
    "operator": ("ops", "operator"),
}


def __dir__() -> list[str]:
    """The public names, and every merge method of task vectors."""
    registry = importlib.import_module(".ops", __name__)
    # Not sorted(): once weightops.sorted is imported, that name is a module here. dir() sorts.
    return list({*__all__, *(method.name for method in registry.methods() if method.takes == "deltas")})


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line answers before numba is loaded.

    A merge method of task vectors is a function under its own name: ``wo.ties([a - base], density=0.3).on(base)``.
    """
    if name == "sorted":  # wo.sorted.generate
        return importlib.import_module(".sorted", __name__)
    if name not in _HOMES:
        if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}"):  # a module of ours, not yet loaded
            raise AttributeError(f"module 'weightops' has no attribute {name!r}")
        return importlib.import_module(".algebra.merged", __name__).function(name)
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)
