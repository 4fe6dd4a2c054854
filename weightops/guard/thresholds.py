"""Finds the threshold for a given share of false alarms and its recall, and writes it to ``guard.json``.

The rule is ours: the lowest threshold with at most the given share of false alarms on the safe texts. Intervals are
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
from ..output.provenance import record_again
from .card import NAME, GuardCard


@dataclass(frozen=True)
class Share:
    """A share of texts.

    Attributes:
        count: Number of texts that raised an alarm.
        total: Number of texts.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN if there are no texts."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share; NaN if there are no texts."""
        if not self.total:
            return math.nan, math.nan
        z2 = 1.959963984540054**2
        middle = (self.count + z2 / 2) / (self.total + z2)
        variance = self.count * (self.total - self.count) / self.total + z2 / 4
        half = math.sqrt(z2 * variance) / (self.total + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        """The share as JSON values; missing values are null."""
        known = {"value": self.value, "interval_95": list(self.interval)} if self.total else {}
        return {"value": None, "interval_95": None, **asdict(self), **known}


@dataclass(frozen=True)
class Outcome:
    """The false alarms and recall of a threshold on labelled texts.

    Attributes:
        threshold: A text with at least this probability is unsafe.
        false_alarms: The share of the safe texts that raise an alarm.
        recall: The share of the unsafe texts that raise an alarm.
    """

    threshold: float
    false_alarms: Share
    recall: Share

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        shares = {"false_alarms": self.false_alarms.to_json(), "recall": self.recall.to_json()}
        return {"threshold": self.threshold, **shares}


@dataclass(frozen=True)
class Judged:
    """A labelled text and the guard's probability that it is unsafe."""

    unsafe: bool
    probability: float


def outcome(texts: Sequence[Judged], threshold: float) -> Outcome:
    """Count the false alarms and the recall of a threshold on these texts."""
    alarms = {True: 0, False: 0}
    totals = {True: 0, False: 0}
    for text in texts:
        totals[text.unsafe] += 1
        alarms[text.unsafe] += text.probability >= threshold
    return Outcome(threshold, Share(alarms[False], totals[False]), Share(alarms[True], totals[True]))


def find_threshold(texts: Sequence[Judged], false_alarms: float) -> Outcome:
    """The lowest threshold at which at most this share of the safe texts raises an alarm.

    The threshold is the middle between two probabilities of the texts, rounded to few digits.

    Args:
        texts: Judged texts, at least one of them safe.
        false_alarms: The largest allowed share, from 0 to less than 1.

    Raises:
        WeightopsError: there is no safe text, or only a threshold of 1 would keep false alarms low enough.
    """
    if not 0 <= false_alarms < 1:
        raise WeightopsError(f"false_alarms {false_alarms}: must be a share from 0 to less than 1, for example 0.01")
    safe = sorted((text.probability for text in texts if not text.unsafe), reverse=True)
    if not safe:
        raise WeightopsError("the data has no safe texts; false alarms are counted on safe texts, so add some")
    allowed = min(math.floor(false_alarms * len(safe) + 1e-9), len(safe) - 1)  # a share below 1 spares one text
    below = safe[allowed]
    above = min((text.probability for text in texts if text.probability > below), default=1.0)
    threshold = _between(below, above)
    if threshold is None:
        stuck = sum(probability == below for probability in safe)
        raise WeightopsError(
            f"{stuck} of {len(safe)} safe texts have the probability {below:g}, so no threshold below 1 keeps false "
            f"alarms to {false_alarms:g}; allow more false alarms, or train the guard further"
        )
    return outcome(texts, threshold)


def _between(below: float, above: float) -> float | None:
    """A number greater than ``below`` and at most ``above``, between 0 and 1, with few digits."""
    middle = (below + above) / 2
    for digits in range(2, 18):
        if below < (number := round(middle, digits)) <= above and 0 < number < 1:
            return number
    exact = math.nextafter(below, 2.0)
    return exact if 0 < exact < 1 else None


def read_evaluation(file: Path, *, streaming: bool = False) -> list[Judged] | None:
    """The judged texts of an ``evaluation.json``; ``None`` if the file is something else.

    Args:
        file: A JSON file.
        streaming: Use the largest probability of a text's prefixes instead of that of the whole text.

    Raises:
        WeightopsError: the file is an evaluation, but its rows cannot be read.
    """
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        report = json.loads(read_small(file, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # data rows, or unreadable; the reader of rows reports problems
        return None
    if not isinstance(report, dict) or not {"measures", "rows"} <= report.keys():
        return None
    rows = report["rows"] if isinstance(report["rows"], list) else []
    faults = [
        f"{file}: row {at}: must have unsafe, and probabilities from 0 to 1" for at, r in enumerate(rows) if _bad(r)
    ]
    if faults or not rows:
        raise WeightopsError(*(faults[:10] or [f"{file}: no rows; evaluate the guard again"]))
    if streaming and report.get("prefix_characters") == 0:
        raise WeightopsError(f"{file}: evaluates whole texts only; evaluate the guard on prefixes first")
    pick = max if streaming else (lambda probabilities: probabilities[-1])
    return [Judged(row["unsafe"], float(pick(row["probabilities"]))) for row in rows]


def _bad(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("unsafe"), bool):
        return True
    values = row.get("probabilities")
    return not (isinstance(values, list) and values and all(type(v) in (int, float) and 0 <= v <= 1 for v in values))


def write_threshold(folder: Path, threshold: float) -> Path:
    """Write a threshold into the ``guard.json`` of a folder, and the file's new digest into ``weightops.json``.

    If it fails, ``guard.json`` is unchanged.

    Raises:
        WeightopsError: the file is missing, is not a guard's card, is in the hub's cache, or cannot be written.
    """
    if folder.resolve().parent.name == "snapshots":
        raise WeightopsError(
            f"{folder}: this folder is in the hub's cache; copy the model to another folder, and name that folder"
        )
    card = replace(GuardCard.read(folder), threshold=threshold)
    try:
        file = card.write(folder)
        record_again(folder, NAME)
        return file
    except OSError as error:
        raise WeightopsError(f"{folder / NAME}: cannot be written ({error.strerror}); check its permissions") from error


def judged(labels: Iterable[bool], probabilities: Iterable[float]) -> list[Judged]:
    """Pair each label with its probability."""
    return [Judged(unsafe, float(p)) for unsafe, p in zip(labels, probabilities, strict=True)]
