"""Rows of a new vocabulary as combinations of rows that a model has: which rows, and how much of each.

Source of ``omp``: orthogonal matching pursuit (Pati et al. 1993) on embeddings, Goddard and Fernandes Neto 2025,
arXiv 2506.06607. A token that both models have is an atom. In the donor's table the new token's row is taken apart into
``k`` atoms, greedily, with the least-squares coefficients; the same sum of the model's rows is the new row.

Batches and blocks have fixed sizes and a thread computes a batch alone, so the result depends on neither memory nor
threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ... import dtypes
from ...engine import kernels
from ...engine.exact_reads import opened_files, read_elements
from ...engine.torch_threads import take_thread_count
from ...io.safetensors import StoredTensor
from ..tokens.row_alignment import Floats, Ints, scattered_rows

#: New tokens computed together, and atoms read at a time.
BATCH: Final = 64
BLOCK_ROWS: Final = 2048

_RIDGE: Final = 1e-10
"""Of the mean squared norm of the atoms: keeps the least squares solvable when atoms repeat."""
_PARALLEL: Final = 1e-5
"""An atom whose part outside the span of earlier ones is a smaller share of it adds nothing."""


@dataclass(frozen=True, eq=False)
class Combinations:
    """Row i is the sum over pairs ``starts[i]`` to ``starts[i + 1]``; a row in ``filled`` is the mean of all rows.

    Attributes:
        starts: [size + 1].
        rows: The row of each pair in the model's table.
        coefficients: How much of it, fp32.
        filled: [size].
    """

    starts: Ints
    rows: Ints
    coefficients: Floats
    filled: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        return len(self.filled)


def combined(size: int, pairs: Mapping[int, tuple[Ints, Floats]], filled: Ints) -> Combinations:
    """Put combinations together.

    Args:
        pairs: For each row the model's rows and their coefficients; a row in neither argument is zeros.
        filled: The rows that get the mean.
    """
    counts, is_filled = np.zeros(size, np.int64), np.zeros(size, bool)
    is_filled[filled] = True
    for row, (sources, _) in pairs.items():
        counts[row] = len(sources)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows, coefficients = np.zeros(starts[-1], np.int64), np.zeros(starts[-1], np.float32)
    for row, (sources, factors) in pairs.items():
        rows[starts[row] : starts[row + 1]], coefficients[starts[row] : starts[row + 1]] = sources, factors
    return Combinations(starts, rows, coefficients, is_filled)


def rows_of(table: StoredTensor, rows: Ints) -> Floats:
    """Some rows of a stored matrix: [len(rows), width], fp32."""
    width, size = table.shape[1], dtypes.itemsize(table.dtype)
    with opened_files(table) as files:

        def read(_: str, span: range) -> Floats:
            raw = np.empty(len(span) * width * size, np.uint8)
            read_elements(table, span.start * width, raw, files)
            widened: Floats = kernels.widen(raw, table.dtype).astype(np.float32).reshape(len(span), width)
            return widened

        return scattered_rows(read, "", rows, (width,))


def mean_of(table: StoredTensor) -> Floats:
    """The mean of all rows of a stored matrix, summed in fp64, [width], fp32."""
    total = np.zeros(table.shape[1])
    for first in range(0, table.shape[0], BLOCK_ROWS):
        total += rows_of(table, np.arange(first, min(first + BLOCK_ROWS, table.shape[0]))).sum(0, dtype=np.float64)
    mean: Floats = (total / max(1, table.shape[0])).astype(np.float32)
    return mean


@dataclass(frozen=True, eq=False)
class Atoms:
    """The rows of the tokens that both models have, in the donor's table.

    Attributes:
        table: The donor's embedding or head.
        rows: Their rows there, rising.
        kept: Whether they stay in memory; else they are read again in every step.
        device: Where torch computes with them.
    """

    table: StoredTensor
    rows: Ints
    kept: bool
    device: str = "cpu"
    _blocks: list[Tensor] = field(default_factory=list)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Number of the first atom of each block, and the block, [atoms, width], fp32."""
        firsts = range(0, len(self.rows), BLOCK_ROWS)
        if self.kept and not self._blocks:
            self._blocks.extend([self._read(first) for first in firsts])
        for number, first in enumerate(firsts):
            yield first, self._blocks[number] if self.kept else self._read(first)

    def _read(self, first: int) -> Tensor:
        return self.there(self.rows[first : first + BLOCK_ROWS])

    def take(self, numbers: Tensor) -> Tensor:
        """Some atoms: [..., width], fp32."""
        return self.there(self.rows[numbers.reshape(-1).cpu().numpy()]).reshape(*numbers.shape, -1)

    def there(self, rows: Ints) -> Tensor:
        """Some rows of the donor's table on the device, [len(rows), width], fp32."""
        return torch.from_numpy(rows_of(self.table, rows)).to(torch.device(self.device))


#: Takes targets apart: their rows [n, width] and the atoms give [n, k] numbers of atoms and [n, k] coefficients.
Taker = Callable[[Tensor, Atoms, int], tuple[Tensor, Tensor]]


def take_apart(
    taker: Taker, atoms: Atoms, targets: Ints, k: int, *, threads: int, advance: Callable[[int], None]
) -> tuple[Ints, Floats]:
    """Numbers of atoms and coefficients for many rows of the donor's table, batch by batch.

    Args:
        targets: The rows to take apart.
        threads: Batches at the same time.
        advance: Called with the number of rows after each batch.

    Returns:
        [targets, k] numbers of atoms, and [targets, k] coefficients.
    """
    batches = [targets[first : first + BATCH] for first in range(0, len(targets), BATCH)]
    numbers, coefficients = np.zeros((len(targets), k), np.int64), np.zeros((len(targets), k), np.float32)
    if atoms.kept:
        list(atoms.blocks())  # read before the threads share them
    with torch.no_grad(), ThreadPoolExecutor(threads, initializer=take_thread_count) as pool:
        done = pool.map(lambda rows: taker(atoms.there(rows), atoms, k), batches)
        for batch, (chosen, factors) in enumerate(done):
            span = slice(batch * BATCH, batch * BATCH + len(chosen))
            numbers[span], coefficients[span] = chosen.cpu().numpy(), factors.cpu().numpy()
            advance(len(chosen))
    return numbers, coefficients


def matching_pursuit(targets: Tensor, atoms: Atoms, k: int) -> tuple[Tensor, Tensor]:
    """``omp``: the atom that fits the rest best is added, ``k`` times; then least squares over the chosen ones."""
    count, width = targets.shape
    chosen = torch.zeros((count, k), dtype=torch.int64, device=targets.device)
    basis = torch.zeros((count, k, width), device=targets.device)
    rest = targets.clone()
    for step in range(k):
        chosen[:, step] = _best_fitting(rest, atoms, chosen[:, :step])
        atom = atoms.take(chosen[:, step])
        earlier = basis[:, :step]
        new = atom - _projected(atom, earlier)
        new = new - _projected(new, earlier)  # once is not enough in fp32
        norm = new.norm(dim=1, keepdim=True)
        useful = norm > _PARALLEL * atom.norm(dim=1, keepdim=True)
        basis[:, step] = torch.where(useful, new / norm.clamp(min=torch.finfo().tiny), 0.0)
        rest = rest - _projected(rest, basis[:, step : step + 1])
    return chosen, _least_squares(targets, atoms, chosen)


def _projected(vectors: Tensor, basis: Tensor) -> Tensor:
    """Each vector's part in the span of its orthonormal basis: [n, width]."""
    return torch.einsum("nk,nkw->nw", torch.einsum("nkw,nw->nk", basis, vectors), basis)


def _best_fitting(rest: Tensor, atoms: Atoms, without: Tensor) -> Tensor:
    """The number of the atom with the largest product with each vector, in absolute value; the lower among equals."""
    best = torch.full((len(rest),), -1.0, device=rest.device)
    numbers = torch.zeros(len(rest), dtype=torch.int64, device=rest.device)
    for first, block in atoms.blocks():
        fit = (rest @ block.T).abs()
        inside = (without >= first) & (without < first + len(block))
        where, which = inside.nonzero(as_tuple=True)
        fit[where, without[where, which] - first] = -1.0
        value, place = fit.max(dim=1)
        better = value > best
        best, numbers = torch.where(better, value, best), torch.where(better, place + first, numbers)
    return numbers


def _least_squares(targets: Tensor, atoms: Atoms, chosen: Tensor) -> Tensor:
    """The coefficients of the chosen atoms that come closest to the targets: normal equations in fp64, [n, k]."""
    coefficients = torch.zeros(chosen.shape, device=targets.device)
    for number, target in enumerate(targets):
        points = atoms.take(chosen[number]).double()
        gram = points @ points.T
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp(min=1e-300))
        coefficients[number] = torch.linalg.solve(gram, points @ target.double()).float()
    return coefficients


def nearest(targets: Tensor, atoms: Atoms, k: int) -> tuple[Tensor, Tensor]:
    """``common_interpolation``: the ``k`` nearest atoms, weighted by the inverse of their distance; the sum is 1."""
    best = torch.full((len(targets), k), torch.inf, device=targets.device)
    numbers = torch.zeros((len(targets), k), dtype=torch.int64, device=targets.device)
    for first, block in atoms.blocks():
        distance = torch.cdist(targets, block, compute_mode="donot_use_mm_for_euclid_dist")
        both = torch.cat([best, distance], 1)
        block_numbers = torch.arange(first, first + len(block), device=targets.device)
        places = torch.cat([numbers, block_numbers.expand(len(targets), -1)], 1)
        best, order = both.topk(k, dim=1, largest=False)
        numbers = places.gather(1, order)
    weights = 1 / best.double().clamp(min=1e-6)
    return numbers, (weights / weights.sum(1, keepdim=True)).float()
