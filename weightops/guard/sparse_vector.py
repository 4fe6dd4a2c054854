"""A guard vector as a sparse delta: the largest entries of guard - base, with the guard's card beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..algebra.changes import Change
from ..algebra.checkpoint import Checkpoint, Delta
from ..errors import WeightopsError
from ..io.output_lock import new_output
from ..io.replacing import place_problems
from ..io.sparse_delta import FILE, made_by, read_sparse_delta
from ..sparse.top_entries import SparseExtraction, sparse_part
from .card import NAME as GUARD_CARD
from .card import card_folder
from .compose import scope_of


@dataclass(frozen=True, eq=False)
class SparseVector:
    """A sparse guard vector, to be written with the guard's card; ``BASE+FOLDER`` is then a guard."""

    entries: SparseExtraction
    guard: Checkpoint

    def problems(self, out: Path, *, overwrite: bool = False) -> list[str]:
        """What prevents writing it to a folder."""
        return [*self.entries.plan_problems, *place_problems(out, overwrite=overwrite)]

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder.

        Raises:
            WeightopsError: nothing has changed, or ``out`` cannot be written.
        """
        out = Path(out)
        if problems := self.problems(out, overwrite=overwrite):
            raise WeightopsError(*problems)
        with new_output(out, "model", overwrite=overwrite) as folder:
            folder.mkdir()
            self.write_to(folder)
        return out

    def write_to(self, folder: Path) -> None:
        """Write its files into a folder that exists."""
        self.entries.save(folder / FILE)
        if (source := card_folder(self.guard)) is not None:
            (folder / GUARD_CARD).write_bytes((source / GUARD_CARD).read_bytes())


def sparse_vector(
    guard: Checkpoint,
    base: Checkpoint,
    density: float,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    command: str | None = None,
) -> SparseVector:
    """Plan a sparse guard vector; only headers are read.

    Args:
        density: Share of the entries of each tensor to keep, in (0, 1].
        include, exclude: Which tensors, as in :func:`.compose.compose_guard`.
        command: The command line, for the file's metadata.

    Raises:
        WeightopsError: the base is no plain model.
    """
    recipe = {
        "kind": "guard vector", "guard": guard.spec, "base": base.spec, "density": density, "include": list(include),
        "exclude": list(exclude),
    }  # fmt: skip
    change = (guard - base).only(scope_of(include, exclude).applies)
    return SparseVector(sparse_part(base, change, density, "per-tensor", made=made_by(recipe, command)), guard)


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
        density, include, exclude: As for :func:`sparse_vector`.

    Raises:
        WeightopsError: the base is no plain model, or nothing has changed.
    """
    with TemporaryDirectory(prefix="weightops-") as folder:
        sparse_vector(guard, base, density, include=include, exclude=exclude).write_to(Path(folder))
        delta = read_sparse_delta(Path(folder) / FILE, f"{guard.spec} at density {density:g}", Path(folder))
        yield Checkpoint(base.source, Delta((Change(replace(delta, base=base.source)),)))
