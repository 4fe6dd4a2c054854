"""How rows are dispersed: one class in ``dispersing/``, named by its file.

A new way is one class with the method ``assign``: a frozen dataclass whose fields are its parameters. It gets the rows
in units, rows that stay together because they are duplicates, and says for each unit which part it goes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weightops.rows.row import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Unit = tuple[int, ...]
"""Numbers of rows that stay together, in order."""


@dataclass(frozen=True)
class Pool:
    """What is dispersed.

    Attributes:
        rows: All of them.
        texts: What is looked at of each row.
        units: Rows that stay together; every row is in exactly one unit, units are in the order of their first rows.
        parts: How many are wanted.
        seed: Decides whatever is drawn.
        vectors: Embeddings of the texts, [rows, width], fp32, of length 1; none where no encoder was named.
        base: The model that the parts are to be trained from; none where it was not named.
        tell: Is told what the user should know.
    """

    rows: Sequence[Row]
    texts: Sequence[str]
    units: Sequence[Unit]
    parts: int
    seed: int
    vectors: NDArray[np.float32] | None
    base: str | None
    tell: Callable[[str], object]


class Dispersion(Protocol):
    """A way to disperse."""

    def needs(self) -> tuple[str, ...]:
        """What must be there: ``embed`` (an encoder), ``base`` (the model that the parts are trained from)."""
        return ()

    def misfits(self, parts: int) -> Iterator[str]:
        """What is wrong with a number of parts."""
        yield from ()

    def assign(self, pool: Pool) -> Sequence[int]:
        """The part of each unit, from 0 on; every part gets at least one unit.

        Raises:
            WeightopsError: the rows cannot be dispersed in this way.
        """
