"""Measures how well a guard judges whole texts, and how early and how correctly it judges them while they arrive.

The measures are Guard Vector's (arXiv 2509.23381): F1 on whole texts, F1 by first crossing when growing prefixes of 100
characters are judged, time to detect, false alarms on safe text. Bootstrap intervals and the curve are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..anatomy.config_keys import max_positions
from ..errors import WeightopsError
from ..extras import needed
from ..io.progress import Progress
from ..rows.labelled import LabelledText
from .judge import Guard
from .metrics import Scores, score
from .streaming.stream import Crossing, Stream, Streams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Track:
    """A guard's probabilities while a text arrived.

    Attributes:
        characters: The length of each prefix, [prefixes].
        tokens: The length of each prefix in tokens, [prefixes].
        probabilities: The probability that each prefix is unsafe, [prefixes]; the last one is for the whole text.
    """

    characters: tuple[int, ...]
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]

    def crossing(self, threshold: float) -> Crossing | None:
        """The first prefix whose probability reaches the threshold."""
        for characters, tokens, probability in zip(self.characters, self.tokens, self.probabilities, strict=True):
            if probability >= threshold:
                return Crossing(characters, tokens)
        return None

    def at(self, length: int) -> int:
        """The index of the longest prefix of at most ``length`` characters (the first, if all are longer)."""
        return max((at for at, characters in enumerate(self.characters) if characters <= length), default=0)


@dataclass(frozen=True)
class Evaluation:
    """Measures of a guard on labelled texts.

    Attributes:
        rows: The texts.
        tracks: The guard's probabilities for each text.
        threshold: A text with at least this probability counts as unsafe.
        step: Characters between prefixes; 0 if only whole texts were judged.
        measures: Name to value; NaN if there is nothing to measure.
        intervals: Name to the ends of its 95 % bootstrap interval.
        curve: For each prefix length: characters, F1 of that prefix alone, F1 by first crossing up to it.
    """

    rows: tuple[LabelledText, ...]
    tracks: tuple[Track, ...]
    threshold: float
    step: int
    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    curve: tuple[tuple[int, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Everything except the texts, as JSON values for a file; NaN becomes null."""
        texts = [
            {
                "unsafe": row.unsafe,
                "characters": len(row.text),
                "first_unsafe_char": row.first_unsafe_char if row.unsafe else None,
                "crossed_at": asdict(crossed) if (crossed := track.crossing(self.threshold)) else None,
                "probabilities": [round(probability, 6) for probability in track.probabilities],
            }
            for row, track in zip(self.rows, self.tracks, strict=True)
        ]
        measured = {
            name: {"value": _number(value), "interval_95": [_number(end) for end in self.intervals[name]]}
            for name, value in self.measures.items()
        }
        curve = [{"characters": c, "f1_prefix": _number(p), "f1_streaming": _number(s)} for c, p, s in self.curve]
        counts = {"texts": len(self.rows), "unsafe": sum(row.unsafe for row in self.rows)}
        head = {**counts, "threshold": self.threshold, "prefix_characters": self.step}
        return {**head, "measures": measured, "curve": curve, "rows": texts}


def evaluate(
    guard: Guard,
    rows: Sequence[LabelledText],
    *,
    step: int = 100,
    batch: int = 16,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Judge every prefix of every text and measure.

    Args:
        guard: The guard; its card has the threshold.
        rows: Texts with labels.
        step: Characters between prefixes; the whole text is always the last. 0 for whole texts only, which is faster;
            streaming measures are then left out.
        batch: Texts judged together.
        resamples: Bootstrap resamples of the rows.
        seed: Seed of the resampling.

    Raises:
        WeightopsError: texts longer than the model reads (all are named), or scikit-learn is missing.
    """
    _sklearn()
    check_lengths(guard, rows)
    texts = [row.text for row in rows]
    judged = tracks(guard, texts, step, batch) if step else whole_texts(guard, texts, batch)
    return measure(rows, judged, guard.card.threshold, step=step, resamples=resamples, seed=seed)


def tracks(guard: Guard, texts: Sequence[str], step: int = 100, batch: int = 16) -> list[Track]:
    """Judge each prefix of each text; the tracks are in the order of the texts.

    Raises:
        WeightopsError: a text is longer than the model reads.
    """
    by_text: dict[int, Track] = {}
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    groups = [order[start : start + batch] for start in range(0, len(order), batch)]
    with Progress(len(texts), "judging prefixes", unit="text", delay=1) as bar:
        for group in groups:
            by_text |= dict(
                zip(group, _follow(Streams(guard, batch=batch), [texts[at] for at in group], step), strict=True)
            )
            bar.update(len(group))
    return [by_text[at] for at in range(len(texts))]


def whole_texts(guard: Guard, texts: Sequence[str], batch: int = 16) -> list[Track]:
    """Judge each whole text; the tracks have one prefix."""
    around = len(guard.frame.rows([""])[0])
    tokens = [len(ids) - around for ids in guard.frame.rows(texts)]
    judged = guard.probabilities(texts, batch)
    return [Track((len(t),), (n,), (float(p),)) for t, n, p in zip(texts, tokens, judged, strict=True)]


def _follow(streams: Streams, texts: Sequence[str], step: int) -> list[Track]:
    opened = {streams.open(): text for text in texts}
    judged: dict[Stream, list[tuple[int, int, float]]] = {stream: [] for stream in opened}
    for start in range(0, max(1, *map(len, texts)), step):
        news = {s: text[start : start + step] for s, text in opened.items() if start < len(text) or start == 0}
        for stream, probability in streams.feed(news).items():
            judged[stream].append((stream.characters, stream.tokens, probability))
    return [Track(*zip(*prefixes, strict=True)) for prefixes in judged.values()]


def measure(
    rows: Sequence[LabelledText],
    judged: Sequence[Track],
    threshold: float,
    *,
    step: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The measures of a guard's tracks, with bootstrap intervals; see :class:`Evaluation`."""
    import numpy as np

    truth = np.array([row.unsafe for row in rows])
    whole = np.array([track.probabilities[-1] for track in judged])
    crossed = [track.crossing(threshold) for track in judged]
    table = {
        "offline": whole >= threshold,
        "streaming": np.array([crossing is not None for crossing in crossed]),
        "probability": whole,
        "characters": np.array([crossing.characters if crossing else np.nan for crossing in crossed]),
        "tokens": np.array([crossing.tokens if crossing else np.nan for crossing in crossed]),
        "first": np.array([np.nan if row.first_unsafe_char is None else row.first_unsafe_char for row in rows]),
    }
    draw = np.random.default_rng(seed)
    picks = [draw.integers(0, len(rows), len(rows)) for _ in range(resamples)]
    samples = [_measures(truth[pick], {name: values[pick] for name, values in table.items()}) for pick in picks]
    values = _measures(truth, table)
    intervals = {name: _interval([sample[name] for sample in samples]) for name in values}
    if not step:
        values = {name: value for name, value in values.items() if not name.startswith(("streaming_", "detected_"))}
        intervals = {name: intervals[name] for name in values}
    longest = max(track.characters[-1] for track in judged)
    lengths = range(step, longest + step, step) if step else ()
    curve = [(length, *_f1_at(truth, judged, threshold, length)) for length in lengths]
    return Evaluation(tuple(rows), tuple(judged), threshold, step, values, intervals, tuple(curve))


def _measures(truth: NDArray[np.bool_], table: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    offline, streaming = (_count(truth, table[name]) for name in ("offline", "streaming"))
    metrics = _sklearn()
    both = bool(truth.any() and not truth.all())
    caught = truth & table["streaming"]
    return {
        "offline_f1": offline.f1,
        "offline_precision": offline.precision,
        "offline_recall": offline.recall,
        "auroc": float(metrics.roc_auc_score(truth, table["probability"])) if both else math.nan,
        "auprc": float(metrics.average_precision_score(truth, table["probability"])) if both else math.nan,
        "streaming_f1": streaming.f1,
        "streaming_precision": streaming.precision,
        "streaming_recall": streaming.recall,
        "offline_false_alarms": offline.false_alarm_rate,
        "streaming_false_alarms": streaming.false_alarm_rate,
        "detected_after_characters": _median(table["characters"][caught]),
        "detected_after_tokens": _median(table["tokens"][caught]),
        "detected_after_first_unsafe_char": _median((table["characters"] - table["first"])[caught]),
    }


def _count(truth: NDArray[np.bool_], alarm: NDArray[np.bool_]) -> Scores:
    return score(truth, alarm, 0.5)


def _median(values: NDArray[np.float64]) -> float:
    import numpy as np

    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _interval(samples: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    known = [sample for sample in samples if not math.isnan(sample)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _f1_at(truth: NDArray[np.bool_], judged: Sequence[Track], threshold: float, length: int) -> tuple[float, float]:
    """F1 of the prefixes of one length alone, and F1 by first crossing up to that length."""
    import numpy as np

    ends = [track.at(length) for track in judged]
    alone = [track.probabilities[end] >= threshold for track, end in zip(judged, ends, strict=True)]
    crossed = [max(track.probabilities[: end + 1]) >= threshold for track, end in zip(judged, ends, strict=True)]
    return _count(truth, np.array(alone)).f1, _count(truth, np.array(crossed)).f1


def check_lengths(guard: Guard, rows: Sequence[LabelledText]) -> None:
    """Refuse texts that are longer than the model reads.

    Raises:
        WeightopsError: every such text.
    """
    most = max_positions(guard.model.config.to_dict()) or math.inf
    lengths = [len(ids) for ids in guard.frame.rows([row.text for row in rows])]
    faults = [
        f"{row.place or f'row {at}'}: {length} tokens with the guard's prompt, but the model reads {most}; "
        "shorten or remove the text"
        for at, (row, length) in enumerate(zip(rows, lengths, strict=True), 1)
        if length > most
    ]
    if faults:
        raise WeightopsError(*faults)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _sklearn() -> Any:
    return needed("sklearn.metrics", "scikit-learn", "train")
