"""The threshold for a wanted share of false alarms, what it costs, and where it is kept.

The rule is ours: the lowest threshold whose false alarms on the safe texts do not pass the wanted share. Intervals are
Wilson's (J. Am. Stat. Assoc. 22, 1927).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import WeightopsError
from ..io.small_files import MOST_BYTES, read_small
from .card import NAME, GuardCard


@dataclass(frozen=True)
class Share:
    """A share of texts.

    Attributes:
        count: Texts that raised an alarm.
        total: Texts.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN of no texts."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval, after Wilson; NaN of no texts."""
        if not self.total:
            return math.nan, math.nan
        z2 = 1.959963984540054**2
        middle = (self.count + z2 / 2) / (self.total + z2)
        variance = self.count * (self.total - self.count) / self.total + z2 / 4
        half = math.sqrt(z2 * variance) / (self.total + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        """For a program; what does not exist is null."""
        known = {"value": self.value, "interval_95": list(self.interval)} if self.total else {}
        return {"value": None, "interval_95": None, **asdict(self), **known}


@dataclass(frozen=True)
class Outcome:
    """What a threshold does on labelled texts.

    Attributes:
        threshold: From this probability on, a text is unsafe.
        false_alarms: Of the safe texts.
        recall: Of the unsafe texts.
    """

    threshold: float
    false_alarms: Share
    recall: Share

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        shares = {"false_alarms": self.false_alarms.to_json(), "recall": self.recall.to_json()}
        return {"threshold": self.threshold, **shares}


@dataclass(frozen=True)
class Judged:
    """A labelled text and the guard's probability that it is unsafe."""

    unsafe: bool
    probability: float


def outcome(texts: Sequence[Judged], threshold: float) -> Outcome:
    """What a threshold does on these texts."""
    alarms = {True: 0, False: 0}
    totals = {True: 0, False: 0}
    for text in texts:
        totals[text.unsafe] += 1
        alarms[text.unsafe] += text.probability >= threshold
    return Outcome(threshold, Share(alarms[False], totals[False]), Share(alarms[True], totals[True]))


def find_threshold(texts: Sequence[Judged], false_alarms: float) -> Outcome:
    """The lowest threshold at which at most this share of the safe texts raises an alarm.

    Between two probabilities that occur it lies in their middle, shortened to few digits.

    Args:
        texts: With at least one safe one.
        false_alarms: The wanted share, from 0 to less than 1.

    Raises:
        WeightopsError: no safe text, or safe texts that only a threshold of 1 would let through.
    """
    if not 0 <= false_alarms < 1:
        raise WeightopsError(f"false_alarms {false_alarms}: a share from 0 to less than 1, for example 0.01")
    safe = sorted((text.probability for text in texts if not text.unsafe), reverse=True)
    if not safe:
        raise WeightopsError("no safe text among the data; false alarms are counted on safe texts, so add some")
    below = safe[math.floor(false_alarms * len(safe) + 1e-9)]
    above = min((text.probability for text in texts if text.probability > below), default=1.0)
    threshold = _between(below, above)
    if threshold is None:
        stuck = sum(probability == below for probability in safe)
        raise WeightopsError(
            f"{stuck} of {len(safe)} safe texts have the probability {below:g}, so no threshold below 1 keeps false "
            f"alarms to {false_alarms:g}; allow more of them, or train the guard further"
        )
    return outcome(texts, threshold)


def _between(below: float, above: float) -> float | None:
    """A number greater than ``below`` and at most ``above``, inside 0 to 1, of few digits."""
    middle = (below + above) / 2
    for digits in range(2, 18):
        if below < (number := round(middle, digits)) <= above and 0 < number < 1:
            return number
    exact = math.nextafter(below, 2.0)
    return exact if 0 < exact < 1 else None


def read_evaluation(file: Path, *, streaming: bool = False) -> list[Judged] | None:
    """The judged texts of an ``evaluation.json``; ``None`` where the file is something else.

    Args:
        file: A JSON file.
        streaming: Take the greatest probability of a text's prefixes, not that of the whole text.

    Raises:
        WeightopsError: it is an evaluation with rows that cannot be read.
    """
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        report = json.loads(read_small(file, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # rows of data, or nothing readable: their reader says what is wrong
        return None
    if not isinstance(report, dict) or not {"measures", "rows"} <= report.keys():
        return None
    rows = report["rows"] if isinstance(report["rows"], list) else []
    faults = [f"{file}: row {at}: needs unsafe, and probabilities from 0 to 1" for at, r in enumerate(rows) if _bad(r)]
    if faults or not rows:
        raise WeightopsError(*(faults[:10] or [f"{file}: no rows; evaluate the guard again"]))
    if streaming and report.get("prefix_characters") == 0:
        raise WeightopsError(f"{file}: whole texts only, without prefixes; evaluate the guard on prefixes first")
    pick = max if streaming else (lambda probabilities: probabilities[-1])
    return [Judged(row["unsafe"], float(pick(row["probabilities"]))) for row in rows]


def _bad(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("unsafe"), bool):
        return True
    values = row.get("probabilities")
    return not (isinstance(values, list) and values and all(type(v) in (int, float) and 0 <= v <= 1 for v in values))


def write_threshold(folder: Path, threshold: float) -> Path:
    """Write a threshold into the ``guard.json`` of a folder, whole or not at all.

    Raises:
        WeightopsError: there is none, it is no guard's card, it lies in a cache, or it cannot be written.
    """
    if folder.resolve().parent.name == "snapshots":
        raise WeightopsError(f"{folder}: a copy in the hub's cache; copy the model to a folder of yours, and name that")
    card = replace(GuardCard.read(folder), threshold=threshold)
    try:
        return card.write(folder)
    except OSError as error:
        raise WeightopsError(f"{folder / NAME}: cannot be written ({error.strerror}); check its permissions") from error


def judged(labels: Iterable[bool], probabilities: Iterable[float]) -> list[Judged]:
    """Labels and probabilities side by side."""
    return [Judged(unsafe, float(p)) for unsafe, p in zip(labels, probabilities, strict=True)]
