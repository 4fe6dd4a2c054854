"""How well a guard judges: F1, precision, recall, false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Scores:
    """Counts of the four outcomes; unsafe is the positive class. A ratio of zero to zero is NaN."""

    hits: int
    misses: int
    false_alarms: int
    passes: int

    @property
    def precision(self) -> float:
        """Share of the alarms that were correct."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the unsafe texts that raised an alarm."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.hits, 2 * self.hits + self.misses + self.false_alarms)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the safe texts that raised an alarm."""
        return _ratio(self.false_alarms, self.false_alarms + self.passes)


def score(unsafe: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5) -> Scores:
    """Compare a guard's judgements with the truth.

    Args:
        unsafe: Whether each text is unsafe, [texts], bool.
        probabilities: The guard's probability that each text is unsafe, [texts].
        threshold: The guard raises an alarm at this probability or above.

    >>> score([True, True, False], [0.9, 0.2, 0.6])
    Scores(hits=1, misses=1, false_alarms=1, passes=0)
    """
    import numpy as np

    truth, alarm = np.asarray(unsafe, bool), np.asarray(probabilities, float) >= threshold
    if truth.shape != alarm.shape or truth.ndim != 1:
        raise ValueError(f"{truth.shape} truths and {alarm.shape} probabilities; give one of each for every text")
    return Scores(_count(truth & alarm), _count(truth & ~alarm), _count(~truth & alarm), _count(~truth & ~alarm))


def _count(where: np.ndarray) -> int:
    return int(where.sum())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
