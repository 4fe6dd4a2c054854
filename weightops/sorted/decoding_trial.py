"""Measures ways of decoding one model against each other, and picks the fastest that writes the same text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import WeightopsError
from ..io.progress import Progress
from .decoding import ConfidentExits, Generated, Method, Plain, SelfSpeculative, generate, spaced_exits
from .written_rows import DecodingCounts

PLAIN = "plain"
#: Lengths of fixed drafts that are tried (ours).
DRAFTS = (1, 2, 3, 5)
#: Confidence that lets a token leave at any exit, in the rows that change the text (ours).
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Way:
    """One way to decode.

    Attributes:
        name: As the table and the picture show it.
        method: What to run; ``None`` runs transformers' own ``generate``.
        early_exit: The exit that transformers drafts from (``assistant_early_exit``); ``None`` for its plain decoding.
    """

    name: str
    method: Method | None
    early_exit: int | None = None


@dataclass(frozen=True)
class WayResult:
    """What a way of decoding did with all prompts.

    Attributes:
        way: The way.
        tokens_per_second: New tokens in a second.
        speed: Tokens a second as a multiple of plain decoding's: the median over the prompts, each measured in turn.
        same: Share of the prompts with the text of plain decoding.
        acceptance: Share of drafted tokens that stayed; none where nothing was drafted or counted.
        exits: Tokens by the number of layers that chose them; empty for transformers.
    """

    way: Way
    tokens_per_second: float
    speed: float
    same: float
    acceptance: float | None
    exits: Mapping[int, int]


@dataclass(frozen=True)
class _Run:
    tokens: list[int]
    seconds: float
    counts: DecodingCounts | None


def ways(depth: int, exits: Sequence[int] = (), *, transformers: bool = True) -> list[Way]:
    """The ways that are compared, for a model of so many layers; plain decoding is the first.

    Args:
        depth: Layers of the model.
        exits: Exits to try; by default every second of the evenly spaced ones.
        transformers: Measure transformers' plain decoding and its ``assistant_early_exit`` beside ours.
    """
    tried = sorted(exits) or spaced_exits(depth)[::2]
    listed = [Way(PLAIN, Plain()), Way("chosen while decoding", SelfSpeculative(tuple(tried)))]
    listed += [
        Way(f"exit {layer}, drafts of {draft}", SelfSpeculative((layer,), draft)) for layer in tried for draft in DRAFTS
    ]
    listed.append(Way(f"leaves when {CONFIDENCE} sure", ConfidentExits(dict.fromkeys(tried, CONFIDENCE))))
    if transformers:
        listed.append(Way("transformers, plain", None))
        listed += [Way(f"transformers, exit {layer}", None, layer) for layer in tried]
    return listed


def try_ways(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tried: Sequence[Way], most: int = 128
) -> list[WayResult]:
    """Decode each prompt in each way, greedily, one way after the other prompt by prompt.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        tried: The ways; plain decoding must be among them. One that the model's class refuses is left out.
        most: Tokens to write at most for each prompt.

    Raises:
        WeightopsError: no prompts.
    """
    if not prompts:
        raise WeightopsError("no prompts to decode; give at least one")
    runs: dict[str, list[_Run]] = {way.name: [] for way in tried}
    left_out: set[str] = set()
    _run(
        model, tokenizer, prompts[0], tried[0], most
    )  # the first pass of a process pays for what later ones find ready
    with Progress(len(prompts) * len(tried), "decoding", unit="texts") as progress:
        for prompt in prompts:
            for way in tried:
                if way.name not in left_out:
                    try:
                        runs[way.name].append(_run(model, tokenizer, prompt, way, most))
                    except (ValueError, TypeError, AttributeError, RuntimeError):
                        if way.method is not None:
                            raise
                        left_out.add(way.name)  # transformers' early exit does not know every architecture
                progress.update()
    plain = runs[PLAIN]
    return [_result(way, runs[way.name], plain) for way in tried if way.name not in left_out]


def best(results: Sequence[WayResult]) -> WayResult:
    """The fastest of our ways that wrote plain decoding's text for every prompt."""
    return max(
        (each for each in results if each.same == 1 and each.way.method is not None), key=lambda each: each.speed
    )


def _run(model: Any, tokenizer: Any, prompt: Sequence[int], way: Way, most: int) -> _Run:
    if way.method is not None:
        done: Generated = generate(model, tokenizer, [prompt], way.method, most=most)
        return _Run(done.tokens[0], done.seconds, done.counts)
    ids = torch.tensor([list(prompt)], device=model.device)
    early = {} if way.early_exit is None else {"assistant_early_exit": way.early_exit}
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, **early)
    return _Run(out[0, len(prompt) :].tolist(), time.perf_counter() - begin, None)


def _result(way: Way, runs: Sequence[_Run], plain: Sequence[_Run]) -> WayResult:
    speeds = [
        (len(run.tokens) / run.seconds) / (len(other.tokens) / other.seconds)
        for run, other in zip(runs, plain, strict=True)
    ]
    counts = [run.counts for run in runs if run.counts is not None]
    drafted = sum(each.drafted for each in counts)
    exits = sum((each.exits for each in counts), start=DecodingCounts().exits)
    return WayResult(
        way,
        sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs),
        statistics.median(speeds),
        sum(run.tokens == other.tokens for run, other in zip(runs, plain, strict=True)) / len(runs),
        sum(each.accepted for each in counts) / drafted if drafted else None,
        dict(sorted(exits.items())),
    )
