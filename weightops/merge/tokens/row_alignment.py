"""The rows of the models that an output's embedding and head are made of, and how to read them in blocks.

mergekit's rule for a token that a model lacks: the row of the one model that has it, else the base's, else the mean of
those that have it; zeros if no model has it. A row without a token (padding) that no model has is the mean of the
model's other rows, so that the head gives it only an average score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

#: Reads consecutive rows of a model's tensor, as fp32: [len(rows), ...].
Read = Callable[[str, range], Floats]

#: Rows that :func:`mean_row` reads at a time; its rounding depends on this number, so the number never changes.
_STEP = 1024


@dataclass(frozen=True, eq=False)
class Fallback:
    """The rows for models that lack an output row: row i is the mean of pairs ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        models: The models of the pairs.
        starts: [size + 1]; a row without pairs is zeros, unless it is in ``filled``.
        which: The model of each pair, as an index into ``models``.
        rows: The row of each pair in that model.
        filled: [size]; rows that get the mean of the model's other rows (:func:`mean_row`).
    """

    models: tuple[str, ...]
    starts: Ints
    which: Ints
    rows: Ints
    filled: Bools

    def pairs(self, row: int) -> list[tuple[str, int]]:
        """The (model, row) pairs whose mean replaces an output row."""
        span = slice(self.starts[row], self.starts[row + 1])
        return [(self.models[m], int(r)) for m, r in zip(self.which[span], self.rows[span], strict=True)]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The rows of an output vocabulary in the models of one tensor.

    Attributes:
        rows_in: For each model, the model's row for each output row; -1 where the model has none.
        forced: [size]; rows that are the same for every model, even if a model has its own.
        named: [size]; rows with a token. The others are padding.
        choices: Single rows that the config sets: (model, row), or ``None`` for zeros.
        base: The model whose row is used instead of a mean.
    """

    rows_in: Mapping[str, Ints]
    forced: Bools
    named: Bools
    choices: Mapping[int, tuple[str, int] | None]
    base: str | None = None

    @property
    def size(self) -> int:
        return len(self.named)

    def among(self, models: Sequence[str], base: str | None = None) -> Alignment:
        """This alignment for a tensor that only these models are merged in.

        Args:
            models: The models whose tensor is read, the base among them.
            base: Their base model, if they have one.
        """
        if tuple(models) == tuple(self.rows_in) and base == self.base:
            return self
        return Alignment({model: self.rows_in[model] for model in models}, self.forced, self.named, self.choices, base)

    def lacking(self, model: str) -> Bools:
        """The output rows that do not come from the model itself."""
        return self.forced | (self.rows_in[model] < 0)

    @cached_property
    def fallback(self) -> Fallback:
        """The rows for models that lack one; the module's docstring states the rule."""
        models = tuple(dict.fromkeys((*self.rows_in, *(c[0] for c in self.choices.values() if c is not None))))
        rows = np.stack([self.rows_in[model] for model in self.rows_in])
        has = rows >= 0
        chosen = np.zeros(self.size, bool)
        chosen[list(self.choices)] = True
        needed = (self.forced | ~has.all(0)) & ~chosen
        taken = has & needed
        if self.base in self.rows_in:
            base = list(self.rows_in).index(self.base or "")
            taken[:, has[base]] = False
            taken[base] = has[base] & needed
        where, which = np.nonzero(taken.T)  # by output row, then in the order of the models
        source = rows[which, where]
        extra = [(at, c) for at, c in self.choices.items() if c is not None]
        where = np.concatenate([where, np.array([at for at, _ in extra], np.int64)])
        which = np.concatenate([which, np.array([models.index(c[0]) for _, c in extra], np.int64)])
        source = np.concatenate([source, np.array([c[1] for _, c in extra], np.int64)])
        order = np.argsort(where, kind="stable")
        starts = np.zeros(self.size + 1, np.int64)
        np.cumsum(np.bincount(where, minlength=self.size), out=starts[1:])
        filled = ~has.any(0) & ~self.named & ~chosen
        return Fallback(models, starts, which[order].astype(np.int64), source[order].astype(np.int64), filled)


def gather_rows(
    alignment: Alignment,
    model: str,
    lo: int,
    hi: int,
    read: Read,
    shape: tuple[int, ...] = (),
    mean: Floats | None = None,
) -> Floats:
    """The output rows ``[lo, hi)`` as a model gives them to the merge. They do not depend on the size of the blocks.

    Args:
        alignment: For the models of this tensor.
        model: One of them.
        read: Reads consecutive rows of a model's tensor; reads each row at most twice, in ascending runs.
        shape: Shape of one row: (width,), or () for a bias.
        mean: :func:`mean_row` of this model; needed if ``alignment.fallback.filled`` is set.

    Returns:
        [hi - lo, *shape], fp32.
    """
    out = np.zeros((hi - lo, *shape), np.float32)
    rows, lacking = alignment.rows_in[model][lo:hi], alignment.lacking(model)[lo:hi]
    present = np.flatnonzero(~lacking)
    out[present] = scattered_rows(read, model, rows[present], shape)
    if not lacking.any():
        return out
    fallback = alignment.fallback
    _add_means(out, np.flatnonzero(lacking), lo, fallback, read, shape)
    filled = np.flatnonzero(lacking & fallback.filled[lo:hi])
    if len(filled):
        assert mean is not None, "rows of padding need the mean of the others"
        out[filled] = mean
    return out


def mean_row(alignment: Alignment, model: str, read: Read, shape: tuple[int, ...] = ()) -> Floats:
    """The mean of a model's aligned rows, without the rows that it fills. One pass over the tensor."""
    total, filled = np.zeros(shape, np.float64), alignment.fallback.filled
    zeros = np.zeros(shape, np.float32)
    for lo in range(0, alignment.size, _STEP):
        hi = min(lo + _STEP, alignment.size)
        total += gather_rows(alignment, model, lo, hi, read, shape, zeros).sum(0, dtype=np.float64)
    mean: Floats = (total / max(1, int((~filled).sum()))).astype(np.float32)
    return mean


def _add_means(out: Floats, places: Ints, lo: int, fallback: Fallback, read: Read, shape: tuple[int, ...]) -> None:
    """Write the mean of each place's pairs to ``out``; summed in fp64 in the order of the models, rounded once."""
    begins, counts = fallback.starts[places + lo], np.diff(fallback.starts)[places + lo]
    sums = np.zeros((len(places), *shape), np.float64)
    for turn in range(int(counts.max(initial=0))):
        remaining = np.flatnonzero(counts > turn)
        pairs = begins[remaining] + turn
        for number in np.unique(fallback.which[pairs]):
            these = fallback.which[pairs] == number
            sums[remaining[these]] += scattered_rows(read, fallback.models[number], fallback.rows[pairs[these]], shape)
    out[places] = sums / np.maximum(counts, 1).reshape(-1, *(1 for _ in shape))


def scattered_rows(read: Read, model: str, rows: Ints, shape: tuple[int, ...]) -> Floats:
    """Read rows in any order, with one read for each run of consecutive rows."""
    if not len(rows):
        return np.zeros((0, *shape), np.float32)
    ascending, places = np.unique(rows, return_inverse=True)
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > 1) + 1)
    runs_read = np.concatenate([read(model, range(int(run[0]), int(run[-1]) + 1)) for run in runs])
    scattered: Floats = runs_read if np.array_equal(ascending, rows) else runs_read[places]
    return scattered
