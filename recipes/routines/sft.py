"""Tune a model on answers: supervised fine-tuning, by any objective, in full or as an adapter.

Rows hold messages, or a prompt and its completion, or a text. Only the assistant's words, the completion, or the whole
text are learned; the rest of a row is context and adds nothing to the loss. A pass may rewrite the rows first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.io.progress import say
from weightops.recipes.data.packing import pack
from weightops.recipes.data.source import check_columns, rows_to_learn, split
from weightops.recipes.floor.checking import check, relation
from weightops.recipes.floor.components import Component, component, kind_of
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.objective import Objective
from weightops.recipes.floor.settings import Data, ModelName, Training
from weightops.recipes.floor.unfinished import check_free
from weightops.recipes.writing.asks import DataPass
from weightops.recipes.writing.rewriting import rewritten
from weightops.rows.chat import unlearnable
from weightops.rows.encode import encode
from weightops.rows.row import Row, raise_faults

if TYPE_CHECKING:
    from weightops.recipes.floor.trainer import Fitted

EVIDENCE = Evidence("implemented and tested")


@dataclass(frozen=True)
class SftRecipe:
    """Settings of a model to tune.

    Attributes:
        base: Model to start from: a folder, ``org/name``, an alias.
        data: Rows of messages, of prompt and completion, or of text; see docs/data.md.
        rewrite: A pass that makes the rows to learn from those of ``data``, held-out ones included; none by default.
            ``weightops data run`` runs it alone.
        model_class: Kind of model. Only causal language models are available yet.
        objective: What to minimise, by name and parameters. The columns of the data that it reads are passed on to it.
        chat: Put a plain prompt and completion through the model's chat template, where it has one.
        tokens: Tokens of the longest row; a longer row is cut at its end.
        packing: Put several short rows into one of ``tokens`` tokens, so that there is little padding. No row attends
            to another.
        training: Settings of the training. Nothing is frozen by default.
    """

    base: ModelName
    data: Data
    rewrite: Annotated[DataPass | None, Component("passes")] = None
    model_class: Literal["causal-lm", "image-text-to-text"] = "causal-lm"
    objective: Annotated[Objective, Component("objectives")] = field(
        default_factory=lambda: component("objectives", "next_token")()
    )
    chat: bool = True
    tokens: Annotated[int, Field(ge=2)] = 1024
    packing: bool = False
    training: Training = field(default_factory=Training)

    @relation("model_class")
    def _is_available(self) -> Iterator[str]:
        if self.model_class != "causal-lm":
            yield f"{self.model_class} is not available yet; use causal-lm"

    @relation("objective")
    def _reads_tokens(self) -> Iterator[str]:
        if self.objective.reads[0] != "input_ids":
            reads = ", ".join(self.objective.reads)
            yield f"{kind_of(self.objective)} reads {reads}, which sft does not make; use the routine made for it"

    @relation("packing")
    def _keeps_rows_apart(self) -> Iterator[str]:
        if self.packing and not self.objective.packs:
            yield f"objective {kind_of(self.objective)} does not keep packed rows apart; set packing to false"


def run(recipe: SftRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Fitted:
    """Read the rows, train, and write a Hugging Face folder, or an adapter's.

    Raises:
        WeightopsError: wrong settings or rows, or the output exists.
    """
    check(recipe)
    check_free(out, overwrite)
    data = recipe_rows(recipe, out)
    learned, held_out = split(data, recipe.data.held_out, recipe.training.seed)
    return train(recipe, learned, held_out, out, overwrite, trust_remote_code=trust_remote_code)


def recipe_rows(recipe: SftRecipe, out: Path) -> list[Row]:
    """The rows of a recipe's data, rewritten by its pass where it has one.

    Args:
        out: The output; the answers that a pass needed are kept beside it, so that a resumed run asks nothing anew.

    Raises:
        WeightopsError: rows that cannot be read, rewritten or learned.
    """
    if recipe.rewrite is None:
        return rows_to_learn(recipe.data, recipe.objective)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problem = "rewrite: several processes would each ask for answers"
        raise WeightopsError(f"{problem}; run the pass alone first, and train on its rows")
    records, counts = rewritten(recipe.data, recipe.rewrite, out, base=recipe.base)
    for note in counts.lines():
        say(note)
    rows = [Row.of(f"{record['from']}, rewritten", record) for record in records]
    raise_faults((row.place, problem) for row in rows for problem in unlearnable(row))
    check_columns(rows, recipe.objective)
    return rows


def train(
    recipe: SftRecipe,
    learned: Sequence[Row],
    held_out: Sequence[Row],
    out: Path,
    overwrite: bool = False,
    *,
    title: str = "tuning",
    beside: Callable[[Path], object] | None = None,
    trust_remote_code: bool = False,
) -> Fitted:
    """Train on rows that are already read; ``title`` and ``beside`` as for :func:`~..floor.trainer.fit`."""
    from weightops.algebra.loading import load
    from weightops.recipes.floor.trainer import fit

    model, tokenizer = load(recipe.base, recipe.training.update.base_dtype, trust_remote_code=trust_remote_code)
    rows = encode(tokenizer, learned, recipe.tokens, chat=recipe.chat, fields=recipe.objective.fields)
    if recipe.packing:
        _check_window(model, recipe.tokens)
        rows = pack(rows, recipe.tokens)
    return fit(
        model,
        tokenizer,
        rows,
        recipe.objective,
        recipe.training,
        out,
        title=title,
        held_out=encode(tokenizer, held_out, recipe.tokens, chat=recipe.chat, fields=recipe.objective.fields),
        beside=beside,
        overwrite=overwrite,
    )


def _check_window(model: Any, tokens: int) -> None:
    """Refuse packed rows longer than a model's window: the mask that keeps rows apart replaces the window's."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and tokens > window:
        raise WeightopsError(
            f"packing: the model attends within a window of {window} tokens; set tokens to at most {window}, or set "
            "packing to false"
        )
