"""Judges text while it arrives: a probability after each chunk, at a cost that depends on the chunk, not on the text.

The keys and values of all tokens so far are cached. To read the labels, the end of the prompt (the rest of the chat
template) is run after them. When more text arrives, the cache is shortened to the tokens that the old and the new
prompt share, and only the tokens after them are run. So a token whose boundary moves is run again, and the answer
equals that for the whole prefix at once, up to rounding.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...anatomy.config_keys import max_positions
from ...errors import WeightopsError
from ..judge import Guard
from ..prompt import Frame
from .kept import Kept, can_keep, label_logits

_AHEAD = 64
"""Characters that must follow a position before the tokens up to it count as settled."""
_BLOCK = 512
"""Most new tokens of a stream in one forward pass; the mask has this size times the length of the text."""


@dataclass(frozen=True)
class Crossing:
    """How much of a text the guard had read when it first judged the text unsafe."""

    characters: int
    tokens: int


class Stream:
    """One text that arrives in chunks.

    Attributes:
        probability: The probability that the text so far is unsafe; ``None`` before the first chunk.
        crossed_at: Where the probability first reached the threshold; later text does not change it.
        characters: Number of characters judged so far.
        closed: Whether the text has ended or was too long.
        problem: The reason why the stream was closed before the text's end.
    """

    def __init__(self, source: Guard | Streams) -> None:
        """Begin an empty text.

        Args:
            source: The guard; or :class:`Streams`, to judge this text together with others.
        """
        self._streams = source if isinstance(source, Streams) else Streams(source)
        self._reader = self._streams._reader
        self._characters = _Characters()
        self._prompt = _Prompt(self._reader)
        self._kept = self._reader.head.copy(self._reader.head_length)
        self._valid = self._reader.head_length
        self.closed = False
        self.probability: float | None = None
        self.crossed_at: Crossing | None = None
        self.problem: WeightopsError | None = None
        self.characters = 0

    def feed(self, chunk: str | bytes) -> float:
        """Add text, and judge all of it so far.

        Args:
            chunk: Characters, or UTF-8. Half a character at the end (bytes of UTF-8, or one of a pair of surrogates)
                waits for the rest; invalid bytes are read as U+FFFD.

        Returns:
            The probability that the text so far is unsafe.

        Raises:
            WeightopsError: the text is longer than the model can read.
            ValueError: the stream is closed.
        """
        return self._streams.feed({self: chunk})[self]

    def close(self) -> float:
        """End the text, including a half character at its end, and free the cache.

        Returns:
            The probability that the text is unsafe.
        """
        if not self.closed:
            probability = self._streams._judge({self: self._characters.rest()})[self]
            self.closed = True
            self._kept = Kept()
            return probability
        assert self.probability is not None
        return self.probability

    @property
    def flagged(self) -> bool:
        """Whether the text was unsafe at any point."""
        return self.crossed_at is not None

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return len(self._prompt.ids) - self._reader.empty_length

    @property
    def kept_bytes(self) -> int:
        """Bytes of the cache of this text."""
        return self._kept.nbytes

    def _add(self, text: str) -> bool:
        """Add characters; returns whether the model must run."""
        if not text and self.probability is not None:
            return False
        self._valid = min(self._valid, self._prompt.add(text))
        self.characters += len(text)
        if len(self._prompt.ids) > self._reader.most_tokens:
            self.closed, self._kept = True, Kept()
            self.problem = WeightopsError(
                f"the text so far and the guard's prompt have {len(self._prompt.ids)} tokens, but the model reads "
                f"{self._reader.most_tokens}; judge the text in parts"
            )
            raise self.problem
        return True

    def _answer(self, probability: float) -> None:
        self.probability = probability
        self._valid = len(self._prompt.ids)
        if self.crossed_at is None and probability >= self._streams.threshold:
            self.crossed_at = Crossing(self.characters, self.tokens)


class Streams:
    """Many texts that arrive at the same time; their new parts are judged in one forward pass.

    Use it from one thread only.

    Attributes:
        guard: The guard that judges.
        threshold: A text with at least this probability is unsafe.
        reencodes: Whether each answer reads the whole text again, because this model's state cannot be shortened
            (chunked attention, state spaces). The answers are the same, but the cost is quadratic in the text. Models
            with a sliding window do not need this: all keys are kept, and the window is a mask.
    """

    def __init__(self, guard: Guard, *, batch: int = 16, threshold: float | None = None) -> None:
        """Prepare a guard for streams.

        Args:
            guard: The guard that judges.
            batch: Most streams in one forward pass.
            threshold: A text with at least this probability is unsafe; by default the card's threshold.
        """
        self.guard, self.batch = guard, batch
        self.threshold = guard.card.threshold if threshold is None else threshold
        self._reader = _reader_of(guard)
        self.reencodes = self._reader.reencodes

    def open(self) -> Stream:
        """Begin an empty text."""
        return Stream(self)

    def feed(self, news: Mapping[Stream, str | bytes]) -> dict[Stream, float]:
        """Add text to some streams and judge each.

        Returns:
            The probability of each stream in ``news``.

        Raises:
            WeightopsError: some texts are longer than the model can read; their streams are closed, the others judged.
            ValueError: a stream is closed, or belongs to another :class:`Streams`.
        """
        for stream in news:
            if stream.closed or stream._streams is not self:
                raise ValueError("a stream is closed, or belongs to other Streams; open a new one here")
        return self._judge({stream: stream._characters.take(chunk) for stream, chunk in news.items()})

    def _judge(self, news: Mapping[Stream, str]) -> dict[Stream, float]:
        due, problems = [], []
        for stream, text in news.items():
            try:
                if stream._add(text):
                    due.append(stream)
            except WeightopsError as error:
                problems.append(error)
        for group in self._groups(due):
            for stream, probability in zip(group, self._reader.probabilities(group), strict=True):
                stream._answer(probability)
        if problems:
            raise WeightopsError(*(line for problem in problems for line in problem.problems))
        return {stream: stream.probability for stream in news if stream.probability is not None}

    def _groups(self, due: Sequence[Stream]) -> list[list[Stream]]:
        """Group streams by their number of new tokens, so that at most half of a batch (and 64 a row) is padding."""
        groups: list[list[Stream]] = []
        for stream in sorted(due, key=_new_tokens):
            least = _new_tokens(groups[-1][0]) if groups else 0
            if not groups or len(groups[-1]) == self.batch or _new_tokens(stream) > 2 * least + 64:
                groups.append([])
            groups[-1].append(stream)
        return groups


def _new_tokens(stream: Stream) -> int:
    return len(stream._prompt.ids) - stream._valid


class _Reader:
    """The part that all streams of a guard share: its prompt, and the cache of the tokens before the text."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.frame = guard, guard.frame
        empty, short = self.frame.rows(["", "a b"])
        self.most_tokens: int = max_positions(guard.model.config.to_dict()) or 2**31
        self.empty_length = len(empty)
        self.settles = _blanks_divide(guard.tokenizer)
        self.head, self.head_length = Kept(), 0
        self.reencodes = not can_keep(guard.model, [empty, short], guard.card.label_ids)
        if not self.reencodes and self.frame.head:
            label_logits(guard.model, [self.head], [0], [self.frame.head], guard.card.label_ids)
            self.head_length = len(self.frame.head)

    def probabilities(self, streams: Sequence[Stream]) -> list[float]:
        """Read the answer of each stream, all in one forward pass."""
        rows = [stream._prompt.ids for stream in streams]
        labels = self.guard.card.label_ids
        if self.reencodes:
            from ...rows.padding import pad_id
            from ..judge import probabilities

            pad = pad_id(self.guard.tokenizer)
            return [float(p) for p in probabilities(self.guard.model, rows, labels, pad, len(rows))]
        starts = [min(stream._valid, len(row) - 1) for stream, row in zip(streams, rows, strict=True)]
        news = [row[start:] for row, start in zip(rows, starts, strict=True)]
        for at, stream in enumerate(streams):
            while len(news[at]) > _BLOCK:
                label_logits(self.guard.model, [stream._kept], [starts[at]], [news[at][:_BLOCK]], labels)
                starts[at], news[at] = starts[at] + _BLOCK, news[at][_BLOCK:]
        logits = label_logits(self.guard.model, [stream._kept for stream in streams], starts, news, labels)
        return [float(p) for p in logits.softmax(-1)[:, 1]]


def _reader_of(guard: Guard) -> _Reader:
    """A guard's reader, created on first use."""
    reader: _Reader | None = vars(guard).get("_reader")
    if reader is None:
        reader = vars(guard)["_reader"] = _Reader(guard)
    return reader


class _Characters:
    """Assembles whole characters from chunks that may end in the middle of one."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")

    def take(self, chunk: str | bytes) -> str:
        """The characters that a chunk completes."""
        if isinstance(chunk, str):
            return self._utf8.decode(b"", True) + self._utf16.decode(chunk.encode("utf-16-le", "surrogatepass"))
        return self._utf16.decode(b"", True) + self._utf8.decode(chunk)

    def rest(self) -> str:
        """U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", True) + self._utf16.decode(b"", True)


class _Prompt:
    """The token ids of a growing text in its frame, the same as if the whole text were tokenised.

    Only the end of the text is tokenised again. The beginning is settled at a space after a letter, at least 64
    characters from the end, if tokenising the two sides separately gives the same tokens as both together. Later text
    cannot change that if no token of the vocabulary has a letter followed by a space (checked) and if the tokenizer
    looks less than 64 characters ahead to split words (true for byte-level BPE, Unigram and BPE over words). With other
    tokenizers, and for text without such spaces (Chinese, Thai), the whole text is tokenised again: still exact, but
    quadratic in characters, at the tokenizer's speed rather than the model's.
    """

    def __init__(self, reader: _Reader) -> None:
        self._frame: Frame = reader.frame
        self._settles = reader.settles
        self._open = self._frame.lead
        self._settled = len(self._frame.head)
        self.ids: list[int] = list(self._frame.head)

    def add(self, text: str) -> int:
        """Append text; returns the length of the unchanged beginning of ``ids``."""
        self._open += text
        body = self._frame.plain(self._open + self._frame.trail)
        new = [*body, *self._frame.tail]
        old = self.ids[self._settled :]
        same = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(old), len(new)) if same is None else same
        same += self._settled
        self.ids[self._settled :] = new
        self._settle(body)
        return same

    def _settle(self, body: list[int]) -> None:
        at = len(self._open) - max(_AHEAD, self._settles)
        if not self._settles or at < 4 * _AHEAD:
            return
        blanks = [match.end() for match in re.finditer(r"[A-Za-z](?= )", self._open[:at])]
        if not blanks:
            return
        left, right = self._open[: blanks[-1]], self._open[blanks[-1] :]
        first = self._frame.plain(left)
        if first + self._frame.plain(right + self._frame.trail) == body:
            self._open, self._settled = right, self._settled + len(first)
        else:
            self._settles = 0


def _blanks_divide(tokenizer: Any) -> int:
    """The length of the longest added token, or 0 if a token contains a space after a letter."""
    if any(re.search("[A-Za-z][ Ġ▁]", token) for token in tokenizer.get_vocab()):
        return 0
    return max((len(token.content) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()), default=1)
