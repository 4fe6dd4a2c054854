"""Writes text with a model's early exits: plain, self-speculative, or leaving early where an exit is sure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..anatomy.config_keys import max_positions
from ..errors import WeightopsError
from ..rows.padding import left_padded, pad_id
from .confident_exits import check_thresholds, decode_by_confidence
from .draft_head import draft_head
from .drafting import DraftPolicy, DynamicDraft, FixedDraft
from .few_tokens import fast_few_tokens
from .layer_ranges import LayerRanges, RangeCache
from .sampling import Chooser, Sampling
from .speculative import SelfSpeculativeRun
from .written_rows import DecodingCounts, Prompt, WrittenRows, grown

#: Exits that are tried where none are named: evenly spaced (ours).
_TRIED_EXITS = 8


@dataclass(frozen=True)
class Plain:
    """Every token from the whole model."""


@dataclass(frozen=True)
class SelfSpeculative:
    """Lower layers draft, the whole model checks; what is written is what the whole model would have written.

    Args:
        exits: Exits to draft from, in layers. One is used always; from several the best is chosen while decoding; by
            default eight that are evenly spaced.
        draft: Tokens in a draft; by default chosen while decoding. A fixed number needs one exit.
        longest: Most tokens in a draft whose length is chosen while decoding.
        vocabulary: Drafts are made of this many frequent tokens and those of the text, which makes their head smaller;
            0 for all tokens. A vocabulary that is not twice as large is used whole.
    """

    exits: Sequence[int] = ()
    draft: int | None = None
    longest: int = 8
    vocabulary: int = 8192

    def policy(self, depth: int, head: float, draft_head: float) -> DraftPolicy:
        """What to draft, for a model of so many layers, with the sizes of its head and of the drafts', in layers.

        Raises:
            WeightopsError: an exit that the model does not have, or a draft of no tokens.
        """
        exits = sorted(set(self.exits)) or spaced_exits(depth)
        for layer in exits:
            if not 1 <= layer < depth:
                raise WeightopsError(f"exit {layer}: the model has {depth} layers; exits are from 1 to {depth - 1}")
        if self.longest < 1 or (self.draft is not None and self.draft < 1):
            raise WeightopsError("a draft has at least 1 token")
        if self.vocabulary < 0:
            raise WeightopsError(f"the vocabulary of drafts is {self.vocabulary}; it must be 0 (whole) or more")
        if self.draft is None:
            return DynamicDraft(exits, depth, head, draft_head, self.longest)
        if len(exits) > 1:
            raise WeightopsError("a draft of fixed length needs one exit; name it, or leave the length to be chosen")
        return FixedDraft(exits[0], self.draft)


@dataclass(frozen=True)
class ConfidentExits:
    """A token leaves at the first exit that gives its best token the exit's threshold. Changes what is written.

    Args:
        thresholds: The least probability for each exit, in layers.
    """

    thresholds: Mapping[int, float]


Method = Plain | SelfSpeculative | ConfidentExits

GREEDY = Sampling()
SELF_SPECULATIVE = SelfSpeculative()


@dataclass(frozen=True)
class Generated:
    """What was written, and how.

    Attributes:
        tokens: Token ids of each row, without the prompt; an end token is the last.
        texts: The rows as text, without special tokens.
        counts: Passes, drafts and exits over all rows.
        seconds: Time from the first pass to the last, the prompt's included.
    """

    tokens: list[list[int]]
    texts: list[str]
    counts: DecodingCounts
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens in a second, over all rows."""
        return sum(map(len, self.tokens)) / self.seconds


def spaced_exits(depth: int) -> list[int]:
    """At most eight exits, evenly spaced over the layers.

    >>> spaced_exits(30)
    [3, 7, 10, 13, 17, 20, 23, 27]
    """
    count = min(_TRIED_EXITS, depth - 1)
    return [round(depth * place / (count + 1)) for place in range(1, count + 1)]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    method: Method = SELF_SPECULATIVE,
    *,
    most: int = 128,
    sampling: Sampling = GREEDY,
) -> Generated:
    """Continue prompts.

    Greedy, self-speculative decoding writes the tokens of plain decoding, up to rounding: a pass over several tokens
    may round otherwise than passes over one, so that the choice between two all but equal tokens may change, mostly in
    16 bits.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt; they are one batch.
        method: How to decode.
        most: Tokens to write at most for each prompt.
        sampling: How tokens are chosen.

    Raises:
        WeightopsError: an empty prompt, one that does not fit the model's context with ``most`` tokens after it, a
            model whose layers cannot be run in parts, or exits that it does not have.
    """
    _check_lengths(model, prompts, most)
    ends = _end_tokens(model, tokenizer)
    padded = left_padded(prompts, pad_id(tokenizer))
    tokens, mask = padded["input_ids"].to(model.device), padded["attention_mask"].to(model.device)
    prompt = Prompt(tokens, None if bool(mask.all()) else mask)
    written, chooser = WrittenRows(len(prompts), most, ends), Chooser(sampling, model.device)
    begin = time.perf_counter()
    with fast_few_tokens(model), LayerRanges(model) as ranges:
        if isinstance(method, SelfSpeculative):
            counts = _draft(ranges, prompt, written, chooser, method)
        elif isinstance(method, ConfidentExits):
            check_thresholds(method.thresholds, ranges.depth)
            counts = decode_by_confidence(ranges, prompt, written, chooser, method.thresholds)
        else:
            counts = _decode(ranges, prompt, written, chooser)
    seconds = time.perf_counter() - begin
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in written.tokens]
    return Generated(written.tokens, texts, counts, seconds)


def _draft(
    ranges: LayerRanges, prompt: Prompt, written: WrittenRows, chooser: Chooser, method: SelfSpeculative
) -> DecodingCounts:
    """Self-speculative decoding."""
    size, smaller = head_in_layers(ranges.model, ranges.depth), draft_head(ranges.model, method.vocabulary)
    draft_size = size if smaller is None else size * method.vocabulary / smaller.vocabulary
    policy = method.policy(ranges.depth, size, draft_size)
    return SelfSpeculativeRun(ranges, prompt, written, chooser, policy, smaller).finish()


def _decode(ranges: LayerRanges, prompt: Prompt, written: WrittenRows, chooser: Chooser) -> DecodingCounts:
    """Plain decoding: one pass of all layers for each token."""
    counts, cache, mask, newest = DecodingCounts(), RangeCache(), prompt.mask, prompt.tokens
    while not written.done:
        out = ranges.run(newest, cache, mask=mask)
        chosen, _ = chooser.choose(out.logits[:, -1])
        counts.exits[ranges.depth] += written.add_column(chosen)
        counts.passes += newest is not prompt.tokens
        newest, mask = chosen[:, None], grown(mask, 1)
    return counts


def head_in_layers(model: Any, depth: int) -> float:
    """The head's number of weights, in layers of average size."""
    head: int = model.get_output_embeddings().weight.numel()
    weights = {id(weight): weight.numel() for weight in model.get_decoder().parameters()}
    weights.pop(id(model.get_input_embeddings().weight), None)
    share: float = head * depth / sum(weights.values())
    return share


def _check_lengths(model: Any, prompts: Sequence[Sequence[int]], most: int) -> None:
    if not prompts or not all(prompts):
        raise WeightopsError("a prompt is empty; give at least one token")
    context = max_positions(model.config.to_dict())
    longest = max(map(len, prompts))
    if context is not None and longest + most > context:
        raise WeightopsError(
            f"the longest prompt has {longest} tokens, and {most} more would pass the model's context of {context}; "
            "shorten the prompt or ask for fewer tokens"
        )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text: the model's generation config names them, else the tokenizer."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = named if isinstance(named, list) else [named]
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}
