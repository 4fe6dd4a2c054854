"""A small sample of text as token ids, to see what a model computes on it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..algebra.checkpoint import Checkpoint
from ..algebra.loading import load_tokenizer
from ..anatomy.config_keys import max_positions, vocabulary_size
from ..errors import WeightopsError
from ..rows.chat import row_tokens
from ..rows.row import Row, raise_faults

#: How many rows, and how many tokens of a row, unless the caller says otherwise.
DEFAULT_ROWS, DEFAULT_TOKENS = 64, 512


@dataclass(frozen=True)
class CalibrationSample:
    """Rows of token ids, and what the user should know about them.

    Attributes:
        ids: Token ids of each row; none is empty.
        notes: Lines about rows that were cut, left out or fewer than wanted.
    """

    ids: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens all rows have together."""
        return sum(map(len, self.ids))


def calibration_tokens(
    model: Checkpoint,
    rows: Sequence[Row],
    *,
    most_rows: int = DEFAULT_ROWS,
    most_tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> CalibrationSample:
    """A sample of rows as a model reads them: chat templates applied, cut at the end, never padded.

    Args:
        model: Whose tokenizer and context length count.
        rows: With ``messages``, ``prompt`` and ``completion``, or ``text``.
        most_rows: Rows to draw, without replacement, in the order of the data; all rows if there are fewer.
        most_tokens: Tokens after which a row is cut; the model's context length if that is less.
        seed: Draws the rows.
        trust_remote_code: As for :func:`~weightops.algebra.loading.load`.

    Raises:
        WeightopsError: rows that cannot be read, only empty ones, no tokenizer, or one that does not fit the model.
    """
    if not rows:
        raise WeightopsError(f"{model.spec}: no rows of data for it; give some text")
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(most_rows, len(rows))))
    config = model.source.config
    limit = min(most_tokens, max_positions(config) or most_tokens)
    faults: list[tuple[str, str]] = []
    encoded: list[tuple[int, ...]] = []
    for number in chosen:
        try:
            encoded.append(row_tokens(tokenizer, rows[number]).ids)
        except WeightopsError as error:
            faults += [(rows[number].place, problem) for problem in error.problems]
    raise_faults(faults)
    ids = tuple(row[:limit] for row in encoded if row)
    if not ids:
        raise WeightopsError(f"{model.spec}: all of its {len(encoded)} rows are empty; give rows with text")
    known = vocabulary_size(config)
    if known is not None and max(map(max, ids)) >= known:
        raise WeightopsError(
            f"{model.spec}: its tokenizer makes token {max(map(max, ids))}, but its embedding has {known} rows; "
            "use the tokenizer that the model was trained with"
        )
    return CalibrationSample(ids, tuple(_notes(model.spec, len(rows), most_rows, encoded, limit)))


def random_tokens(
    model: Checkpoint, *, rows: int = DEFAULT_ROWS, tokens: int = DEFAULT_TOKENS, seed: int = 0
) -> CalibrationSample:
    """A sample of tokens drawn at random, each as likely as any other.

    Args:
        model: Whose vocabulary and context length count.
        rows: How many rows.
        tokens: Tokens of a row; the model's context length if that is less.
        seed: Draws the tokens.

    Raises:
        WeightopsError: the model's configuration does not say how large its vocabulary is.
    """
    config = model.source.config
    known = vocabulary_size(config)
    if known is None:
        raise WeightopsError(f"{model.spec}: its config.json gives no vocabulary size to draw random tokens from")
    draw = random.Random(seed)
    length = min(tokens, max_positions(config) or tokens)
    return CalibrationSample(tuple(tuple(draw.choices(range(known), k=length)) for _ in range(rows)))


def _notes(spec: str, rows: int, wanted: int, encoded: Sequence[Sequence[int]], limit: int) -> list[str]:
    cut, empty = sum(len(row) > limit for row in encoded), sum(not row for row in encoded)
    notes = (
        [f"{spec}: {cut} of {len(encoded)} rows are longer than {limit} tokens and are cut at their end"] if cut else []
    )
    if empty:
        notes.append(f"{spec}: {empty} of {len(encoded)} rows are empty and are left out")
    if rows < wanted:
        notes.append(f"{spec}: its data has {rows} rows, fewer than the {wanted} wanted; all are used")
    return notes
