"""The largest entries of a matrix that is not in memory: given a few rows at a time, or as an outer product.

Larger first, and among equals the lower flat index, as everywhere in weightops.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from weightops.engine.torch_threads import one_torch_thread

_STRIDE = 32
_SPARE = 1.5  # a threshold from every 32nd entry lets this many times the wanted number pass, so rarely too few
_ENOUGH = 1.25  # so many times the wanted number are listed and sorted; to look for a better threshold takes longer


def top_of_blocks(blocks: Iterable[tuple[int, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The entries of largest magnitude of a matrix that comes in blocks of rows.

    Args:
        blocks: The first row of each block and the block, [some, columns], from the top down.
        count: How many entries.

    Returns:
        Flat positions, [count], sorted, and the entries there. What is not finite is left out, so there may be fewer.
    """
    flat, entries = torch.empty(0, dtype=torch.long), torch.empty(0)
    for first, block in blocks:
        with one_torch_thread():
            line = block.reshape(-1)
            near = _likely(line, count) if len(entries) < count else _above(line, entries.abs().min())
            flat = torch.cat([flat.to(near.device), near + first * block.shape[1]])
            entries = torch.cat([entries.to(line), line[near]])
            kept = top(entries.abs(), count)
            flat, entries = flat[kept], entries[kept]
    return flat, entries


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the largest scores, [count], sorted; among equals the lower index. None of them is NaN."""
    if count >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    if count <= 0:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    least = scores.topk(count, sorted=False).values.min()
    chosen = scores > least
    ties = (scores == least).nonzero().reshape(-1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.nonzero().reshape(-1)


def among(values: Tensor, listed: Tensor) -> Tensor:
    """Which values are in a list that is sorted: [len(values)], bool."""
    if not len(listed):
        return torch.zeros_like(values, dtype=torch.bool)
    listed = listed.to(values.dtype)
    places = torch.searchsorted(listed, values).clamp_(max=len(listed) - 1)
    return listed[places] == values


def _likely(line: Tensor, count: int) -> Tensor:
    """Indices, sorted, among which the ``count`` largest are: all that reach a threshold, which a sample gives."""
    sample = line[::_STRIDE].abs()
    wanted = int(_SPARE * count / _STRIDE) + _STRIDE
    if wanted < len(sample):
        passing = _reaching(line, sample.topk(wanted, sorted=False).values.min())
        if len(passing) >= count:
            return passing
    return line.isfinite().nonzero().reshape(-1)


def _above(line: Tensor, least: Tensor) -> Tensor:
    """Indices, sorted, of what is larger than the least of some earlier entries; what equals it loses to it."""
    return _reaching(line, torch.nextafter(least, least.new_tensor(torch.inf)))


def _reaching(line: Tensor, least: Tensor) -> Tensor:
    """Indices, sorted, of what is finite and of at least some magnitude."""
    indices = ((line >= least) | (line <= -least)).nonzero().reshape(-1)
    return indices[line[indices].isfinite()]


def top_of_outer_product(rows: Tensor, columns: Tensor, count: int, without: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entries of ``outer(rows, columns)`` that are not listed, without forming it.

    The product of two fp32 numbers is exact in fp64. So the entries above a threshold can be counted exactly: for each
    row by one binary search among the sorted columns. Bisection over the bits of fp64 finds a threshold near the last
    entry's score. (Ours.)

    Args:
        rows: [m], fp32, not negative.
        columns: [n], fp32, not negative.
        count: How many entries.
        without: Flat positions that are left out, [k], sorted, each once.

    Returns:
        Flat positions, [count], sorted (fewer where the matrix ends), and their scores, fp64.
    """
    outer = _OuterProduct(rows, columns)
    wanted = min(count + len(without), len(rows) * len(columns))
    if wanted == 0:
        return without.new_empty(0, dtype=torch.long), rows.new_empty(0, dtype=torch.float64)
    flat, scores = outer.largest(wanted)
    free = ~among(flat, without)
    flat, scores = flat[free], scores[free]
    kept = top(scores, count)
    return flat[kept], scores[kept]


class _OuterProduct:
    """An outer product that can be counted and listed from a threshold on."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows.double(), len(columns)
        values, self.order = torch.sort(columns.double(), descending=True, stable=True)
        self.values, repeats = torch.unique_consecutive(values, return_counts=True)
        self.upto = torch.cat([repeats.new_zeros(1), repeats.cumsum(0)])
        self.ascending = self.values.flip(0)

    def largest(self, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` largest entries: flat positions, sorted, and scores."""
        least, above = self._threshold(wanted)
        reaching = self.upto[self._reaching(least)]
        if above is None:
            flat = self._listed(torch.zeros_like(reaching), reaching).sort().values
        else:
            flat = self._with_ties(self.upto[above], reaching, wanted)
        scores = self.rows[flat // self.columns] * self._column_values()[flat % self.columns]
        kept = top(scores, wanted)
        return flat[kept], scores[kept]

    def _threshold(self, wanted: int) -> tuple[Tensor, Tensor | None]:
        """A score that at least ``wanted`` entries reach, and few more.

        Where many more reach it because they are equal, also how many column values give each row a larger one.
        """
        low, high = 0, int((self.rows.max() * self.values[0]).view(torch.int64)) + 1
        while high - low > 1:
            middle = (low + high) // 2
            reaching = int(self.upto[self._reaching(_number(middle, self.rows))].sum())
            if wanted <= reaching <= _ENOUGH * wanted:
                return _number(middle, self.rows), None
            low, high = (middle, high) if reaching >= wanted else (low, middle)
        least = _number(low, self.rows)
        return least, self._reaching(least, strictly=True)

    def _with_ties(self, above: Tensor, reaching: Tensor, wanted: int) -> Tensor:
        """All entries above the threshold, and of those equal to it the first in C order, ``wanted`` in all."""
        ties, missing = reaching - above, wanted - above.sum()
        some = torch.where(ties.cumsum(0) - ties < missing, ties, 0)  # of the rows from the top until there are enough
        equal = self._listed(above, some).sort().values[:missing]
        return torch.cat([self._listed(torch.zeros_like(above), above), equal]).sort().values

    def _reaching(self, least: Tensor, *, strictly: bool = False) -> Tensor:
        """For each row, how many of the distinct column values give a score of at least (or above) a number."""

        def passes(index: Tensor) -> Tensor:
            inside = index.clamp(0, len(self.values) - 1)
            score = self.rows * self.values[inside]
            enough: Tensor = score > least if strictly else score >= least
            return (index >= 0) & (index < len(self.values)) & enough

        quotient = torch.where(self.rows > 0, least / self.rows, torch.inf if least > 0 else 0.0)
        number = len(self.values) - torch.searchsorted(self.ascending, quotient)
        number = number + passes(number).long()  # the quotient is rounded: it may be wrong by one value either way
        number = number - (~passes(number - 1) & (number > 0)).long()
        return torch.where((self.rows == 0) & ~passes(torch.zeros_like(number)), 0, number)

    def _listed(self, begin: Tensor, counts: Tensor) -> Tensor:
        """Flat positions of some neighbours in the order of the columns, for each row from ``begin`` on."""
        row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        within = torch.arange(len(row), device=counts.device) - torch.repeat_interleave(
            counts.cumsum(0) - counts, counts
        )
        return row * self.columns + self.order[begin[row] + within]

    def _column_values(self) -> Tensor:
        values = torch.empty(self.columns, dtype=torch.float64, device=self.rows.device)
        values[self.order] = torch.repeat_interleave(self.values, self.upto.diff())
        return values


def _number(bits: int, like: Tensor) -> Tensor:
    return torch.tensor(bits, dtype=torch.int64, device=like.device).view(torch.float64)
