"""Which rows of which models an output's embedding and head are made of, and reading them block by block.

mergekit's rule for a token that a model lacks: the row of the one model that has it, else the base's, else the mean of
those that have it; zeros where nobody does. A row without a token (padding) that no model has is the mean of the
model's other rows, so that the head gives it no more than a middling score.
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

#: Rows that :func:`mean_row` reads at a time; part of what decides its rounding, so it never changes.
_STEP = 1024


@dataclass(frozen=True, eq=False)
class Fallback:
    """The rows for models that lack an output row: row i is the mean of pairs ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        models: The models that pairs speak of.
        starts: [size + 1]; a row without pairs is zeros, or filled.
        which: The model of each pair, as its place in ``models``.
        rows: The row of each pair in that model.
        filled: [size]; rows that get the mean of the model's other rows (:func:`mean_row`).
    """

    models: tuple[str, ...]
    starts: Ints
    which: Ints
    rows: Ints
    filled: Bools

    def pairs(self, row: int) -> list[tuple[str, int]]:
        """The (model, row) pairs whose mean stands in for an output row."""
        span = slice(self.starts[row], self.starts[row + 1])
        return [(self.models[m], int(r)) for m, r in zip(self.which[span], self.rows[span], strict=True)]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The rows of an output vocabulary in the models of one tensor.

    Attributes:
        own: For each model, the row of each output row in it, -1 where it has none.
        forced: [size]; rows that are the same for every model, whatever it has itself.
        named: [size]; rows with a token. The others are padding.
        choices: What the config says of single rows: (model, row), or zeros.
        base: The model whose row goes before a mean.
    """

    own: Mapping[str, Ints]
    forced: Bools
    named: Bools
    choices: Mapping[int, tuple[str, int] | None]
    base: str | None = None

    @property
    def size(self) -> int:
        return len(self.named)

    def among(self, models: Sequence[str], base: str | None = None) -> Alignment:
        """The same for a tensor that only these models are merged in.

        Args:
            models: The models whose tensor is read, the base among them.
            base: Their base model, if they have one.
        """
        if tuple(models) == tuple(self.own) and base == self.base:
            return self
        return Alignment({model: self.own[model] for model in models}, self.forced, self.named, self.choices, base)

    def lacking(self, model: str) -> Bools:
        """Which output rows the model does not give itself."""
        return self.forced | (self.own[model] < 0)

    @cached_property
    def fallback(self) -> Fallback:
        """The rows for models that lack one; see the module for the rule."""
        models = tuple(dict.fromkeys((*self.own, *(c[0] for c in self.choices.values() if c is not None))))
        rows = np.stack([self.own[model] for model in self.own])
        has = rows >= 0
        chosen = np.zeros(self.size, bool)
        chosen[list(self.choices)] = True
        wanted = (self.forced | ~has.all(0)) & ~chosen
        taken = has & wanted
        if self.base in self.own:
            mine = list(self.own).index(self.base or "")
            taken[:, has[mine]] = False
            taken[mine] = has[mine] & wanted
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
    """The output rows ``[lo, hi)`` as a model gives them to the merge. The same whatever the blocks.

    Args:
        alignment: For the models of this tensor.
        model: One of them.
        read: Reads consecutive rows of a model's tensor; asked for each row at most twice, in ascending runs.
        shape: Shape of one row: (width,), or () for a bias.
        mean: :func:`mean_row` of this model; needed where ``alignment.fallback.filled`` is set.

    Returns:
        [hi - lo, *shape], fp32.
    """
    out = np.zeros((hi - lo, *shape), np.float32)
    own, lacking = alignment.own[model][lo:hi], alignment.lacking(model)[lo:hi]
    here = np.flatnonzero(~lacking)
    out[here] = _scattered(read, model, own[here], shape)
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
    """The mean of a model's aligned rows, those that are filled with it left out: one pass over the tensor."""
    total, filled = np.zeros(shape, np.float64), alignment.fallback.filled
    nothing = np.zeros(shape, np.float32)
    for lo in range(0, alignment.size, _STEP):
        hi = min(lo + _STEP, alignment.size)
        total += gather_rows(alignment, model, lo, hi, read, shape, nothing).sum(0, dtype=np.float64)
    mean: Floats = (total / max(1, int((~filled).sum()))).astype(np.float32)
    return mean


def _add_means(out: Floats, places: Ints, lo: int, fallback: Fallback, read: Read, shape: tuple[int, ...]) -> None:
    """Put the mean of each place's pairs there, summed in fp64 in the order of the models and rounded once."""
    begins, counts = fallback.starts[places + lo], np.diff(fallback.starts)[places + lo]
    sums = np.zeros((len(places), *shape), np.float64)
    for turn in range(int(counts.max(initial=0))):
        left = np.flatnonzero(counts > turn)
        pairs = begins[left] + turn
        for number in np.unique(fallback.which[pairs]):
            these = fallback.which[pairs] == number
            sums[left[these]] += _scattered(read, fallback.models[number], fallback.rows[pairs[these]], shape)
    out[places] = sums / np.maximum(counts, 1).reshape(-1, *(1 for _ in shape))


def _scattered(read: Read, model: str, rows: Ints, shape: tuple[int, ...]) -> Floats:
    """Rows in any order, through as few reads of consecutive ones as there are runs."""
    if not len(rows):
        return np.zeros((0, *shape), np.float32)
    ascending, places = np.unique(rows, return_inverse=True)
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > 1) + 1)
    found = np.concatenate([read(model, range(int(run[0]), int(run[-1]) + 1)) for run in runs])
    scattered: Floats = found if np.array_equal(ascending, rows) else found[places]
    return scattered
