"""A sparse delta on disk: a safetensors file with some entries of some tensors of a base model.

For each changed tensor NAME the file holds ``NAME.idx``, where packed ``NAME.ends`` (flat positions, see
:mod:`.stored_positions`), ``NAME.val`` (a value for each) and, if it can be reverted, ``NAME.orig`` (the base's own
entries). One key of the metadata, :data:`KEY`, holds a JSON object: ``version``, ``semantics``, ``base``
(its name), ``made`` (how the file was made), and in ``tensors`` each one's shape, the base's dtype and the base's
content digest. Every file is hostile: all of it but the values is checked when it is opened, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import Message, Remedy, WeightopsError, attempt_all, short
from ..version import __version__
from .folder import parse_json
from .replacing import DELTA
from .safetensors import MOST_DIMENSIONS, Header, StoredTensor, read_header
from .small_files import inside
from .stored_positions import PACKED, WIDE, StoredPositions, block_count, ends_fault
from .weights import Weights

#: The key of the file's metadata that makes it a sparse delta.
KEY: Final = "weightops_sparse"
VERSION: Final = 1
#: Name of the file in a folder that holds a sparse delta.
FILE: Final = DELTA
#: ``add``: the values are added to the base's entries. ``replace``: they are the new entries, bit for bit.
Semantics = Literal["add", "replace"]
SEMANTICS: Final = ("add", "replace")

#: Shape, dtype and content digest of a tensor of the base.
Described = tuple[tuple[int, ...], str, str]

_AGAIN = "the file is damaged, make or download it again"


@dataclass(frozen=True)
class DeltaMetadata:
    """What a delta file says about itself.

    Attributes:
        semantics: What the values mean, see :data:`Semantics`.
        base: The name that the base model was opened by; ``None`` if there is none to give.
        made: How the file was made, as JSON values.
    """

    semantics: Semantics
    base: str | None = None
    made: Mapping[str, Any] = field(default_factory=dict)


def made_by(recipe: Mapping[str, Any], command: str | None = None) -> dict[str, Any]:
    """How a delta file was made, for :attr:`DeltaMetadata.made`.

    Args:
        recipe: The settings, as JSON values.
        command: The command line, if there was one.
    """
    return {"weightops": __version__, "recipe": recipe, **({"command": command} if command else {})}


@dataclass(frozen=True)
class SparseTensor:
    """The stored entries of one tensor.

    Attributes:
        shape: Of the base's tensor.
        dtype: Of the base's tensor, safetensors name.
        base_digest: Content digest of the base's tensor; see :func:`weightops.engine.tally.tensor_digest`.
        positions: Flat positions, k of them, sorted, each once.
        values: [k]; floats to add, or new entries in the base's dtype.
        originals: The base's entries at these positions, [k], in its dtype; ``None`` if the file does not hold them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    base_digest: str
    positions: StoredPositions
    values: StoredTensor
    originals: StoredTensor | None = None

    @property
    def entries(self) -> int:
        return self.positions.count

    @property
    def count(self) -> int:
        """Elements of the base's tensor."""
        return dtypes.count(self.shape)

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        parts = (*self.positions.stored, self.values, self.originals)
        return tuple(part for part in parts if part is not None)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """A sparse delta on disk. Two objects opened from the same file and bound to the same base are equal.

    Attributes:
        spec: What the user named.
        file: The safetensors file.
        tensors: The changed tensors, by name.
        folder: The folder whose small files belong to it; ``None`` for a file that is named alone.
        base: The model that it was opened with, as in ``BASE+FILE``; only there do its digests have to fit.
        reverts: It was inverted (:func:`reverting`): added to the model that it made, it gives the base.
    """

    spec: str
    file: Path
    about: DeltaMetadata
    tensors: Mapping[str, SparseTensor]
    folder: Path | None = None
    base: Weights | None = None
    reverts: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    @property
    def entries(self) -> int:
        return sum(tensor.entries for tensor in self.tensors.values())

    @property
    def revertible(self) -> bool:
        """Whether the file holds the base's entries."""
        return all(tensor.originals is not None for tensor in self.tensors.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SparseDelta) and (self is other or self._contents == other._contents)

    def __hash__(self) -> int:
        return hash(self._contents[0])

    @cached_property
    def _contents(self) -> tuple[Any, ...]:
        """The file with links resolved, where each tensor lies in it, and the base."""
        places = {name: [(part.offset, part.dtype) for part in t.stored] for name, t in self.tensors.items()}
        return self.file.resolve(), places, self.about, self.base, self.reverts

    def __repr__(self) -> str:
        return f"SparseDelta({self.spec!r}, {self.entries} entries of {len(self.tensors)} tensors)"


def reverting(delta: SparseDelta, model: Weights) -> SparseDelta:
    """The delta that puts the base's entries back into a model that this delta made.

    Raises:
        WeightopsError: the file does not hold the base's entries; the first tensor without them is named.
    """
    turned = {}
    for name, tensor in delta.tensors.items():
        if tensor.originals is None:
            what = f"{delta.file}: {short(name)}: the base's entries are not in the file, so it cannot be reverted"
            remedies = Remedy("use the base itself"), Remedy("extract the delta with its base's entries (originals)")
            raise WeightopsError(Message(what, *remedies))
        turned[name] = replace(tensor, values=tensor.originals, originals=None)
    about = replace(delta.about, semantics="replace")
    return replace(delta, about=about, tensors=turned, base=model, reverts=True)


def delta_file(place: Path) -> Path | None:
    """The sparse delta at a path: the file itself, or :data:`FILE` in a folder; ``None`` if neither is there."""
    file = place / FILE if place.is_dir() else place
    return file if file.suffix == ".safetensors" and file.is_file() else None


def is_sparse_delta(file: Path) -> bool:
    """Whether a safetensors file says that it is a sparse delta.

    Raises:
        WeightopsError: the header is damaged.
    """
    return KEY in read_header(file).metadata


def read_sparse_delta(file: Path, spec: str, folder: Path | None = None) -> SparseDelta:
    """Read a delta file's header, and check every position in it. Values are not read.

    Args:
        spec: The name that the user gave.
        folder: The folder whose small files belong to the delta.

    Raises:
        WeightopsError: not a sparse delta, or one that is damaged; a line for each tensor that is wrong.
    """
    if folder is not None:
        inside(file, folder)
    header = read_header(file)
    values = _values(header, file)
    about = _metadata(values, file)
    tensors = _tensors(values.get("tensors"), header, about, file)
    attempt_all(partial(check_positions, tensor) for tensor in tensors.values())
    return SparseDelta(spec, file, about, tensors, folder)


def describe_tensors(tensors: Mapping[str, Described], about: DeltaMetadata) -> dict[str, Any]:
    """The JSON object of a file's metadata."""
    listed = {
        n: {"shape": list(shape), "dtype": dtype, "base": digest} for n, (shape, dtype, digest) in tensors.items()
    }
    head = {"version": VERSION, "semantics": about.semantics, "base": about.base}
    return {**head, "tensors": listed, "made": dict(about.made)}


def check_positions(tensor: SparseTensor) -> None:
    """Refuse positions that are outside the tensor, out of order, or listed twice.

    Raises:
        WeightopsError: one line, with the tensor's name and the first wrong position.
    """
    where, before = _where(tensor.positions.file, tensor.name), -1
    ends = tensor.positions.read_ends()
    if ends is not None and (problem := ends_fault(ends, tensor.entries)):
        raise WeightopsError(f"{where}: {problem}; {_AGAIN}")
    for chunk in tensor.positions.chunks():
        if problem := position_fault(chunk, before, tensor.count):
            raise WeightopsError(f"{where}: {problem}; {_AGAIN}")
        before = int(chunk[-1])


def position_fault(chunk: npt.NDArray[np.int64], before: int, count: int) -> str | None:
    """What is wrong with some positions; ``None`` if nothing is.

    Args:
        chunk: Positions, [n].
        before: The position before the first, or -1.
        count: Elements of the tensor.
    """
    outside = chunk[(chunk < 0) | (chunk >= count)]
    if len(outside):
        return f"position {outside[0]} is outside its {count} elements"
    steps = np.diff(chunk, prepend=before)
    wrong = np.flatnonzero(steps <= 0)
    if not len(wrong):
        return None
    here = int(chunk[wrong[0]])
    return f"position {here} is listed twice" if steps[wrong[0]] == 0 else f"position {here} is out of order"


def read_about(file: Path) -> DeltaMetadata:
    """What a delta file says about itself; its tensors are not looked at.

    Raises:
        WeightopsError: not a sparse delta, or its metadata is damaged.
    """
    return _metadata(_values(read_header(file), file), file)


def _values(header: Header, file: Path) -> dict[str, Any]:
    if KEY not in header.metadata:
        raise WeightopsError(f"{file}: not a sparse delta (its metadata has no {KEY}); name one, or a PEFT adapter")
    return parse_json(header.metadata[KEY].encode("utf-8", "replace"), f"{file}: {KEY}")


def _metadata(values: Mapping[str, Any], file: Path) -> DeltaMetadata:
    version, semantics, base, made = (values.get(key) for key in ("version", "semantics", "base", "made"))
    if version != VERSION or type(version) is not int:
        what = f"format version {short(repr(version))}; this weightops reads version {VERSION}"
        raise WeightopsError(f"{file}: {what}; install a newer weightops")
    if semantics not in SEMANTICS:
        raise WeightopsError(f"{file}: semantics is {short(repr(semantics))}, not {' or '.join(SEMANTICS)}; {_AGAIN}")
    if not (base is None or isinstance(base, str)) or not (made is None or isinstance(made, dict)):
        raise WeightopsError(f"{file}: {KEY}: base must be text and made an object; {_AGAIN}")
    return DeltaMetadata(cast(Semantics, semantics), base, made or {})


def _tensors(entries: Any, header: Header, about: DeltaMetadata, file: Path) -> dict[str, SparseTensor]:
    if not isinstance(entries, dict) or not entries:
        raise WeightopsError(f"{file}: {KEY} lists no tensors; {_AGAIN}")
    stored = {tensor.name: tensor for tensor in header.tensors}
    tensors = attempt_all(partial(_tensor, name, entry, stored, about, file) for name, entry in entries.items())
    used = {part.name for tensor in tensors for part in tensor.stored}
    if extra := sorted(stored.keys() - used):
        raise WeightopsError(f"{_where(file, extra[0])}: belongs to no tensor that {KEY} lists; {_AGAIN}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(
    name: str, entry: Any, stored: Mapping[str, StoredTensor], about: DeltaMetadata, file: Path
) -> SparseTensor:
    """One tensor, its header entries checked against each other."""
    where = _where(file, name)
    shape, dtype, digest = _described(entry, where)
    parts = {part: stored.get(f"{name}.{part}") for part in ("idx", "val", "orig")}
    indices, values, originals = parts["idx"], parts["val"], parts["orig"]
    if indices is None or values is None:
        missing = "idx" if indices is None else "val"
        raise WeightopsError(f"{where}: {missing} is missing; {_AGAIN}")
    positions = _positions(indices, stored.get(f"{name}.ends"), dtypes.count(shape), where)
    allowed = dtypes.FLOATS if about.semantics == "add" and dtype in dtypes.FLOATS else (dtype,)
    if values.dtype not in allowed:
        raise WeightopsError(f"{where}: val has dtype {values.dtype}, not {' or '.join(allowed)}; {_AGAIN}")
    if originals is not None and originals.dtype != dtype:
        raise WeightopsError(f"{where}: orig has dtype {originals.dtype}, the base {dtype}; {_AGAIN}")
    for part, tensor in parts.items():
        if tensor is not None and tensor.shape != (indices.count,):
            problem = f"{part} has shape {tensor.shape}, but there are {indices.count} positions"
            raise WeightopsError(f"{where}: {problem}; {_AGAIN}")
    return SparseTensor(name, shape, dtype, digest, positions, values, originals)


def _positions(indices: StoredTensor, ends: StoredTensor | None, elements: int, where: str) -> StoredPositions:
    """The positions of one tensor, their dtypes and shapes checked."""
    wide = "I64" if elements >= WIDE else "I32"
    if indices.dtype not in (PACKED, "I64", wide):
        raise WeightopsError(f"{where}: idx has dtype {indices.dtype}, not {PACKED} or {wide}; {_AGAIN}")
    if (indices.dtype == PACKED) != (ends is not None):
        raise WeightopsError(f"{where}: idx has dtype {indices.dtype} and ends is {_there(ends)}; {_AGAIN}")
    if ends is not None and (ends.dtype not in ("I32", "I64") or ends.shape != (block_count(elements),)):
        what = f"{ends.dtype} {list(ends.shape)}, not I32 or I64 [{block_count(elements)}]"
        raise WeightopsError(f"{where}: ends is {what}; {_AGAIN}")
    return StoredPositions(indices, ends)


def _there(part: StoredTensor | None) -> str:
    return "missing" if part is None else "there"


def _described(entry: Any, where: str) -> Described:
    """Shape, dtype and base digest of a tensor, as the metadata gives them."""
    if not isinstance(entry, dict) or set(entry) != {"shape", "dtype", "base"}:
        raise WeightopsError(f"{where}: {KEY} needs its shape, dtype and base; {_AGAIN}")
    shape, dtype, digest = entry["shape"], entry["dtype"], entry["base"]
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise WeightopsError(f"{where}: its shape is not a list of at most {MOST_DIMENSIONS} lengths; {_AGAIN}")
    if max(shape, default=0) >= 1 << 62 or dtypes.count(tuple(shape)) >= 1 << 62:
        raise WeightopsError(f"{where}: the shape {short(shape)} is too large; {_AGAIN}")
    if not isinstance(dtype, str) or dtypes.BITS.get(dtype, 1) % 8:
        raise WeightopsError(f"{where}: unknown dtype {short(repr(dtype))}; {_AGAIN}")
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise WeightopsError(f"{where}: base is not a digest of 64 hexadecimal digits; {_AGAIN}")
    return tuple(shape), dtype, digest


def _where(file: Path, name: str) -> str:
    return f"{file}: {short(name)}"
