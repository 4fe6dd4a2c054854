"""Early exit by confidence: a token leaves at the first exit that is sure of it. This changes what is written.

Sorted LLaMA's instance-aware inference (arXiv 2309.08968) with thresholds for each exit. The paper does not say what
the skipped layers hold for later tokens. Ours: a token that left early waits at its exit, with its hidden state; the
next token that goes further takes all waiting ones along, in one pass. So each layer's cache is what the whole model
would have put there for the same tokens, and nothing is approximated but the choice of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import WeightopsError
from .layer_ranges import LayerRanges, RangeCache
from .sampling import Chooser
from .written_rows import DecodingCounts, Prompt, WrittenRows, grown


def check_thresholds(thresholds: Mapping[int, float], depth: int) -> None:
    """Refuse exits that are not layers of the model, and thresholds that are not probabilities.

    Raises:
        WeightopsError: with the exit at fault.
    """
    if not thresholds:
        raise WeightopsError("no exits; give at least one layer with its threshold, such as 12: 0.9")
    for layer, threshold in thresholds.items():
        if not 1 <= layer < depth:
            raise WeightopsError(f"exit {layer}: the model has {depth} layers; exits are from 1 to {depth - 1}")
        if not 0 < threshold <= 1:
            raise WeightopsError(f"exit {layer}: its threshold is {threshold}; it must be above 0 and at most 1")


def decode_by_confidence(
    ranges: LayerRanges, prompt: Prompt, written: WrittenRows, chooser: Chooser, thresholds: Mapping[int, float]
) -> DecodingCounts:
    """Decode until every row has ended.

    Args:
        ranges: The model.
        prompt: The prompts. Their own tokens pass through all layers.
        written: Takes the tokens.
        chooser: Chooses tokens.
        thresholds: For each exit (in layers) the least probability of its best token to leave there. A batch leaves
            when every row that has not ended is as sure.
    """
    counts = DecodingCounts()
    cache, mask = RangeCache(), prompt.mask
    out = ranges.run(prompt.tokens, cache, mask=mask)
    newest, _ = chooser.choose(out.logits[:, -1])
    counts.exits[ranges.depth] += written.add_column(newest)
    levels = [0, *sorted(thresholds), ranges.depth]
    waiting: dict[int, list[Tensor]] = {level: [] for level in levels}
    tokens = newest[:, None]  # those that wait, the newest last; the first level has seen all but the newest
    while not written.done:
        mask = grown(mask, 1)
        live = ~written.ended.to(newest.device)
        for first, last in pairwise(levels):
            entering = torch.cat(waiting[first], 1) if first else None
            run = tokens if entering is None else tokens.expand(-1, entering.shape[1])
            out = ranges.run(run, cache, first=first, last=last, entering=entering, mask=mask)
            waiting[first].clear()
            waiting[last].append(out.states[last])
            logits = out.logits[:, -1]
            if last == ranges.depth or _sure(logits[live], thresholds[last]):
                break
        waiting[ranges.depth].clear()
        counts.passes += last == ranges.depth
        newest, _ = chooser.choose(logits)
        counts.exits[last] += written.add_column(newest)
        tokens = newest[:, None]
    return counts


def _sure(logits: Tensor, threshold: float) -> bool:
    """Whether each row's best token has at least this probability, from logits [rows, vocabulary]."""
    return bool((logits.float().log_softmax(-1).amax(-1).exp() >= threshold).all())
