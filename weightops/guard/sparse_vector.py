"""A guard vector as a sparse delta: the largest entries of guard - base, with the guard's card beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..algebra.changes import Change
from ..algebra.checkpoint import Checkpoint, Delta
from ..io.output_lock import new_output
from ..io.replacing import check_place
from ..io.sparse_delta import FILE, made_by, read_sparse_delta
from ..sparse.top_entries import SparseExtraction, sparse_part
from .card import NAME as GUARD_CARD
from .card import card_folder
from .compose import scope_of


def save_sparse_vector(
    guard: Checkpoint,
    base: Checkpoint,
    density: float,
    out: str | Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    overwrite: bool = False,
    command: str | None = None,
) -> Path:
    """Write a folder with the sparse guard vector and the guard's card; ``BASE+OUT`` is then a guard.

    Args:
        density: Share of the entries of each tensor to keep, in (0, 1].
        include, exclude: Which tensors, as in :func:`.compose.compose_guard`.
        command: The command line, for the file's metadata.

    Raises:
        WeightopsError: the base is no plain model, nothing has changed, or ``out`` cannot be written.
    """
    out = Path(out)
    vector = _vector(guard, base, density, include, exclude, command)
    check_place(out, overwrite=overwrite)
    with new_output(out, "model", overwrite=overwrite) as folder:
        folder.mkdir()
        _write(vector, guard, folder)
    return out


@contextmanager
def sparse_guard(
    guard: Checkpoint,
    base: Checkpoint,
    density: float,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Iterator[Checkpoint]:
    """The guard with only the largest entries of its vector; for :func:`.compose.compose_guard` inside the block.

    Args:
        density, include, exclude: As for :func:`save_sparse_vector`.

    Raises:
        WeightopsError: the base is no plain model, or nothing has changed.
    """
    with TemporaryDirectory(prefix="weightops-") as folder:
        _write(_vector(guard, base, density, include, exclude, None), guard, Path(folder))
        delta = read_sparse_delta(Path(folder) / FILE, f"{guard.spec} at density {density:g}", Path(folder))
        yield Checkpoint(base.source, Delta((Change(replace(delta, base=base.source)),)))


def _vector(
    guard: Checkpoint,
    base: Checkpoint,
    density: float,
    include: Sequence[str],
    exclude: Sequence[str],
    command: str | None,
) -> SparseExtraction:
    scope = scope_of(include, exclude)
    recipe = {
        "kind": "guard vector", "guard": guard.spec, "base": base.spec, "density": density, "include": list(include),
        "exclude": list(exclude),
    }  # fmt: skip
    made = made_by(recipe, command)
    return sparse_part(base, (guard - base).only(scope.applies), density, "per-tensor", made=made)


def _write(vector: SparseExtraction, guard: Checkpoint, folder: Path) -> None:
    vector.save(folder / FILE)
    if (source := card_folder(guard)) is not None:
        (folder / GUARD_CARD).write_bytes((source / GUARD_CARD).read_bytes())
