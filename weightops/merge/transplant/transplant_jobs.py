"""The rows of a transplanted vocabulary as the engine writes them, and how they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np

from ...engine.jobs import RowReader
from ...io.safetensors import StoredTensor
from ..tokens.model_tokens import ModelTokens
from ..tokens.row_alignment import Floats, Ints, scattered_rows
from .combinations import (
    Atoms,
    Combinations,
    Taker,
    combined,
    matching_pursuit,
    mean_of,
    nearest,
    take_apart,
)
from .token_texts import SPACE, texts_of

TransplantMethod = Literal["omp", "common_interpolation", "subword", "mean", "zero"]
METHODS: Final[tuple[TransplantMethod, ...]] = get_args(TransplantMethod)

#: Methods that read the donor's weights.
TAKERS: Final[dict[str, Taker]] = {"omp": matching_pursuit, "common_interpolation": nearest}


@dataclass(frozen=True, eq=False)
class TokenMatch:
    """The donor's tokens and the model's.

    Attributes:
        size: Rows of the output.
        same: For a row of the output, the model's row of the same token.
        new: Rows of the output whose token the model does not have, rising.
        pieces: With ``subword``, the model's tokens that a new token's text is made of.
        without_source: New tokens that the method has nothing to make a row from, and rows without a token.
    """

    size: int
    same: dict[int, int]
    new: Ints
    pieces: dict[int, list[int]]
    without_source: Ints


def subword_pieces(model: ModelTokens, donor: ModelTokens, new: Ints) -> dict[int, list[int]]:
    """The model's own tokens for the text of each new token; nothing where the text has none, or only unknown ones."""
    text_of, rows = texts_of(donor), set(model.with_row.values())
    rows -= {model.ids.get(str(model.document["model"].get("unk_token"))), model.document["model"].get("unk_id")}
    begun = model.tokenizer.encode("a", add_special_tokens=False).tokens[:1]
    begins = bool(begun) and begun[0].startswith(SPACE)  # it puts a space before every text
    tokens = {number: token for token, number in donor.ids.items()}
    pieces = {}
    for number in new.tolist():
        text = text_of(tokens[number]).decode("utf-8", errors="ignore")
        ids = model.tokenizer.encode(text.removeprefix(" ") if begins else text, add_special_tokens=False).ids
        if known := [one for one in ids if one in rows]:
            pieces[number] = known
    return pieces


@dataclass(eq=False)
class TransplantedRows:
    """One table of the model with rows for the donor's tokens.

    Attributes:
        table: The model's embedding or head.
        donor: The donor's, for methods that read it.
        combinations: Filled in by :meth:`compute`, before the engine writes.
    """

    table: StoredTensor
    donor: StoredTensor | None
    combinations: Combinations | None = None
    _mean: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        return (self.table,) if self.donor is None else (self.table, self.donor)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.table.shape[1]

    def atoms_in(self, match: TokenMatch) -> list[int]:
        """The rows of the donor's table whose tokens the model has too, rising."""
        return sorted(row for row in match.same if self.donor is not None and row < self.donor.shape[0])

    def compute(
        self,
        match: TokenMatch,
        method: TransplantMethod,
        k: int,
        *,
        threads: int,
        memory: int,
        device: str = "cpu",
        advance: Callable[[int], None],
    ) -> None:
        """Find what each row is made of.

        Args:
            k: Atoms of a combination.
            threads: Batches at the same time.
            memory: Most bytes of atoms that stay in memory.
            device: Where the search runs; one batch at a time if it is not the CPU.
            advance: Called with a number of new tokens as they are done.
        """
        pairs = {row: (np.array([one]), np.ones(1, np.float32)) for row, one in match.same.items()}
        computed = np.setdiff1d(match.new, match.without_source)
        filled = match.without_source
        if method in TAKERS and self.donor is not None:
            donor_rows = self.atoms_in(match)
            kept = 4 * len(donor_rows) * self.donor.shape[1] <= memory
            atoms = Atoms(self.donor, np.array(donor_rows, np.int64), kept, device)
            at_once = threads if device == "cpu" else 1
            numbers, factors = take_apart(TAKERS[method], atoms, computed, k, threads=at_once, advance=advance)
            ours = np.array([match.same[row] for row in donor_rows], np.int64)
            pairs |= {int(row): (ours[numbers[n]], factors[n]) for n, row in enumerate(computed)}
        elif method == "subword":
            pairs |= {
                row: (np.array(ids), np.full(len(ids), 1 / len(ids), np.float32)) for row, ids in match.pieces.items()
            }
        elif method == "mean":
            filled = np.union1d(filled, match.new)
        self.combinations = combined(match.size, pairs, filled)
        self._mean = mean_of(self.table)

    def fill(self, out: Floats, first: int, last: int, read: RowReader) -> None:
        """Write rows ``first`` up to, not including, ``last``."""
        made = self.combinations
        assert made is not None, "compute was not called"

        def rows(numbers: Ints) -> Floats:
            return scattered_rows(lambda _, span: read(self.table, span.start, span.stop), "", numbers, (self.width,))

        starts, counts = made.starts[first:last], np.diff(made.starts[first : last + 1])
        out[:] = 0
        out[made.filled[first:last]] = self._mean
        copied = np.flatnonzero((counts == 1) & (made.coefficients[np.minimum(starts, len(made.rows) - 1)] == 1))
        out[copied] = rows(made.rows[starts[copied]])
        for place in np.setdiff1d(np.flatnonzero(counts), copied).tolist():
            span = slice(starts[place], starts[place] + counts[place])
            factors = made.coefficients[span].astype(np.float64)
            out[place] = (factors[:, None] * rows(made.rows[span])).sum(0)
