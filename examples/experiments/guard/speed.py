"""What judging costs: one token against a written verdict, and a kept cache against reading every prefix anew."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightops.guard import Guard, Streams
from weightops.rows.padding import left_padded, pad_id

VERDICTS = {"one token": 1, "five tokens": 5, "30 tokens": 30}
"""Tokens of a generated verdict: a bare label; ``unsafe`` and a category, as Llama Guard writes; with a reason."""
LENGTHS = (400, 800, 1600, 3200)
STEP = 100
REPEATS = 3


def measure(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Both costs of one guard, as seconds and ratios of what ran side by side; medians of three."""
    guard = Guard.load(folder)
    return {"verdicts": _verdicts(guard, texts[:48]), "streaming": _streaming(guard, texts)}


def _verdicts(guard: Guard, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Judging 48 texts in batches of 16 by label logits, and by generating with the same model and transformers."""
    tokens = sum(map(len, guard.frame.rows(texts)))
    guard.probabilities(texts)
    measured: list[dict[str, Any]] = []
    ways: dict[str, Callable[[], object]] = {"label logits": lambda: guard.probabilities(texts)}
    ways |= {name: lambda new=new: _generate(guard, texts, new) for name, new in VERDICTS.items()}
    rounds = [{name: _seconds(way) for name, way in ways.items()} for _ in range(REPEATS)]
    for name in ways:
        seconds = statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one["label logits"] for one in rounds)
        measured.append({"way": name, "tokens_per_second": tokens / seconds, "texts_per_second": len(texts) / seconds,
                      "times_label_logits": ratio})  # fmt: skip
    return measured


def _generate(guard: Guard, texts: Sequence[str], new: int) -> None:
    pad = pad_id(guard.tokenizer)
    rows = sorted(guard.frame.rows(texts), key=len)
    for start in range(0, len(rows), 16):
        inputs = left_padded(rows[start : start + 16], pad)
        inputs.pop("position_ids")
        guard.model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=pad)


def _streaming(guard: Guard, texts: Sequence[str]) -> list[dict[str, Any]]:
    """One text that arrives in chunks of 100 characters, for texts of several lengths."""
    long = "\n".join(texts)
    measured = []
    for length in LENGTHS:
        text = long[:length]
        rounds = [(_seconds(lambda t=text: _stream(guard, t)), _seconds(lambda t=text: _anew(guard, t)))
                  for _ in range(REPEATS)]  # fmt: skip
        pairs = zip(_stream(guard, text), _anew(guard, text), strict=True)
        measured.append({
            "characters": length,
            "stream_seconds": statistics.median(kept for kept, _ in rounds),
            "anew_seconds": statistics.median(anew for _, anew in rounds),
            "ratio": statistics.median(anew / kept for kept, anew in rounds),
            "greatest_difference": max(abs(kept - anew) for kept, anew in pairs),
        })  # fmt: skip
    return measured


def _stream(guard: Guard, text: str) -> list[float]:
    streams = Streams(guard)
    stream = streams.open()
    return [streams.feed({stream: text[start : start + STEP]})[stream] for start in range(0, len(text), STEP)]


def _anew(guard: Guard, text: str) -> list[float]:
    return [float(guard.probabilities([text[: start + STEP]])[0]) for start in range(0, len(text), STEP)]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
