"""A model by the name a user gives it, as a list of tensors: headers are read, and nothing is converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..io.gguf import ALIASES, alias_file
from ..io.hub import download, is_hub_id
from ..io.listing import Listing, list_gguf, list_pickled, list_stored
from ..io.pickled import is_pickled
from ..io.small_files import inside
from .opening import adapter_base, open_adapter, open_checkpoint


@dataclass(frozen=True)
class ModelListing:
    """What ``inspect`` shows.

    Attributes:
        base: The model's tensors; of ``BASE+ADAPTER`` the base's.
        changed: Names of the tensors that an adapter changes.
    """

    base: Listing
    changed: frozenset[str] = frozenset()


def list_model(spec: str) -> ModelListing:
    """List a model's tensors from headers; a GGUF file's or a ``.bin`` file's are not converted.

    Args:
        spec: As for :func:`weightops.open`.

    Raises:
        WeightopsError: nothing is there, or a header cannot be read.
    """
    base, adapter = adapter_base(spec)
    changed = open_adapter(adapter).names if adapter else frozenset[str]()
    return ModelListing(_unconverted(base) or list_stored(open_checkpoint(base).source.tensors), changed)


def _unconverted(spec: str) -> Listing | None:
    """The list of what opening would convert; ``None`` of anything else, whose header opening reads."""
    place = alias_file(spec) if spec in ALIASES else Path(spec).expanduser()
    if spec not in ALIASES and not place.exists() and is_hub_id(spec):
        place = download(spec)
    if place.is_dir():
        packed = sorted(place.glob("*.gguf"))
        stored = any(place.glob("*.safetensors")) or any(place.glob("*.safetensors.index.json"))
        if stored or is_pickled(place) or len(packed) != 1:
            return list_pickled(place) if is_pickled(place) and not stored else None
        place = inside(packed[0], place)
    if place.suffix == ".gguf":
        return list_gguf(place)
    return list_pickled(place) if place.is_file() and is_pickled(place) else None
