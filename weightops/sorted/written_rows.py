"""What a run of decoding works on and what it leaves: the prompts as a batch, the rows written so far, the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompts of one batch, all ending in the last column.

    Attributes:
        tokens: Token ids, [rows, longest prompt].
        mask: 1 for a token, 0 for padding, of the same shape; none if all prompts are as long.
    """

    tokens: Tensor
    mask: Tensor | None


def grown(mask: Tensor | None, new: int) -> Tensor | None:
    """The mask with as many further columns of tokens."""
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), new)], 1)


@dataclass
class DecodingCounts:
    """What decoding did.

    Attributes:
        passes: Passes of the whole model, or of its upper part to check a draft; the prompt's not counted.
        drafted: Tokens that a sub-model drafted, over all rows.
        accepted: How many of these the whole model kept.
        exits: Tokens by the number of layers that chose them.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    exits: Counter[int] = field(default_factory=Counter)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that stayed; none if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None


class WrittenRows:
    """The tokens written so far, row by row; a row ends with an end token or when it has its number of tokens.

    Args:
        rows: Rows in the batch.
        most: Tokens to write at most in each.
        ends: Tokens that end a row; they are kept.
    """

    def __init__(self, rows: int, most: int, ends: Collection[int]) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self._most, self.ends = most, frozenset(ends)
        self._ended = [most == 0] * rows

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self._ended)

    @property
    def left(self) -> int:
        """Tokens that the row with the most to write still lacks."""
        rows = zip(self.tokens, self._ended, strict=True)
        return max((self._most - len(row) for row, ended in rows if not ended), default=0)

    @property
    def ended(self) -> Tensor:
        """Which rows have ended, [rows], bool."""
        return torch.tensor(self._ended)

    def add(self, row: int, tokens: Collection[int]) -> int:
        """Write tokens to a row as far as it takes them; returns how many it took."""
        taken = 0
        for token in tokens:
            if self._ended[row]:
                break
            self.tokens[row].append(token)
            taken += 1
            self._ended[row] = token in self.ends or len(self.tokens[row]) == self._most
        return taken

    def add_column(self, tokens: Tensor) -> int:
        """Write one token to each row, [rows]; returns how many rows took theirs."""
        return sum(self.add(row, [token]) for row, token in enumerate(tokens.tolist()))
