"""The order of rows in an epoch: a function of seed and epoch alone, so that a resumed run keeps to it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[int]:
    """Row numbers: shuffled, sorted by length within every 16 batches so that little is padded, batches shuffled.

    Cut into pieces of ``batch``, the order gives the batches; only the last may be smaller.

    >>> order([3, 9, 3, 9], 2, seed=0, epoch=0)
    [2, 0, 1, 3]
    """
    draw = random.Random(f"{seed}/{epoch}")
    rows = draw.sample(range(len(lengths)), len(lengths))
    whole = len(rows) - len(rows) % batch
    batches = []
    for start in range(0, whole, 16 * batch):
        near = sorted(rows[start : min(start + 16 * batch, whole)], key=lambda row: lengths[row])
        batches += [near[first : first + batch] for first in range(0, len(near), batch)]
    draw.shuffle(batches)
    return [row for members in batches for row in members] + rows[whole:]


FILLER = -1
"""Row number that stands for no row."""


class Order:
    """A sampler for torch's DataLoader; ``epoch`` is set before each epoch.

    Several processes need equally many rows. Where there are too few for the last step, fillers come after them;
    otherwise accelerate would repeat rows.

    Args:
        lengths: Length of each row.
        batch: Rows in a step.
        seed: Of the order.
        multiple: What the number of rows and fillers is a multiple of; it divides ``batch``.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, multiple: int = 1) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0
        self.fillers = -len(lengths) % multiple

    def __iter__(self) -> Iterator[int]:
        return iter([*order(self.lengths, self.batch, self.seed, self.epoch), *[FILLER] * self.fillers])

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self) // self.batch)
