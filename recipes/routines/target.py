"""Tune a target for guard vectors: the base, tuned on texts of another domain by plain language modelling.

Without data it learns texts that every Python installation has: the language reference in ``pydoc_data.topics`` and
sources of the standard library.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.data.source import load_rows
from weightops.recipes.floor.checking import check, relation
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import VOCABULARY_AND_NORMS, Count, Data, ModelName, Training, freezing
from weightops.recipes.floor.unfinished import check_free
from weightops.recipes.objectives.next_token import NextToken
from weightops.rows.chat import rendered
from weightops.rows.row import Row, raise_faults

if TYPE_CHECKING:
    from weightops.recipes.floor.trainer import Fitted

EVIDENCE = Evidence("measured here", ("2509.23381",), "guard.md")

MODULES = (
    "argparse", "ast", "asyncio.tasks", "csv", "dataclasses", "datetime", "difflib", "functools", "heapq",
    "json.decoder", "logging", "pathlib", "random", "shutil", "statistics", "subprocess", "textwrap", "typing",
    "unittest.case", "zipfile",
)  # fmt: skip
"""Modules whose sources are read: they are plain Python and in every installation."""


@dataclass(frozen=True)
class TargetRecipe:
    """Settings of a target to tune.

    Attributes:
        base: Model to start from: a folder, ``org/name``, an alias.
        data: Rows of text, or of messages for the model's chat template; without it, Python's own texts.
        blocks: Pieces of text to train on, at most; each is read once an epoch.
        tokens: Tokens of a piece.
        training: Settings of the training. Unless ``freeze`` is set, embeddings, head and norms are frozen, so that the
            target differs from the base only in tensors that a guard vector changes.
    """

    base: ModelName
    data: Data | None = None
    blocks: Count = 384
    tokens: Annotated[int, Field(ge=2)] = 128
    training: Training = field(default_factory=lambda: Training(lr=5e-5, epochs=1))

    @relation("data")
    def _none_held_out(self) -> Iterator[str]:
        if self.data is not None and self.data.held_out:
            yield "target does not measure held-out rows; remove held_out"


def run(recipe: TargetRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Fitted:
    """Tune by next token and write a Hugging Face folder.

    Raises:
        WeightopsError: wrong settings or rows, too little text, or the output exists.
    """
    check(recipe)
    check_free(out, overwrite)
    from weightops.algebra.loading import load
    from weightops.recipes.floor.trainer import fit

    model, tokenizer = load(recipe.base, recipe.training.update.base_dtype, trust_remote_code=trust_remote_code)
    texts = python_texts() if recipe.data is None else row_texts(tokenizer, recipe.data)
    rows = [{"input_ids": piece} for piece in blocks(tokenizer, texts, recipe)]
    if not rows:
        raise WeightopsError(
            f"tokens: the text is shorter than one piece of {recipe.tokens} tokens; give more text, or lower tokens"
        )
    training = freezing(recipe.training, VOCABULARY_AND_NORMS)
    return fit(model, tokenizer, rows, NextToken(), training, out, title="training the target", overwrite=overwrite)


def python_texts() -> list[str]:
    """The topics of Python's language reference, then the sources of some of its modules."""
    import importlib
    from pydoc_data.topics import topics

    return [*topics.values(), *(inspect.getsource(importlib.import_module(module)) for module in MODULES)]


def row_texts(tokenizer: Any, data: Data) -> list[str]:
    """The texts of rows; messages as the model's chat template writes them.

    Raises:
        WeightopsError: rows that have neither (the first ten faults), by their places.
    """
    rows = load_rows(data)
    texts: list[str] = []
    faults: list[tuple[str, str]] = []
    for row in rows:
        try:
            texts.append(_text(tokenizer, row))
        except WeightopsError as error:
            faults += [(row.place, problem) for problem in error.problems]
    raise_faults(faults)
    return texts


def _text(tokenizer: Any, row: Row) -> str:
    if (messages := row.checked("messages")) is not None:
        return rendered(tokenizer, messages)
    text = row.checked("text")
    if text is None:
        raise WeightopsError("needs text or messages")
    return str(text)


def blocks(tokenizer: Any, texts: Sequence[str], recipe: TargetRecipe) -> list[list[int]]:
    """Pieces of equal length, drawn from all the texts; fewer than ``recipe.blocks`` if the texts are short."""
    ids = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False, verbose=False)]
    whole = [ids[start : start + recipe.tokens] for start in range(0, len(ids) - recipe.tokens + 1, recipe.tokens)]
    return random.Random(recipe.training.seed).sample(whole, min(recipe.blocks, len(whole)))
