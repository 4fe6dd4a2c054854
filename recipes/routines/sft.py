"""Tune a model on answers: supervised fine-tuning, by any objective, in full or as an adapter.

Rows hold messages, or a prompt and its completion, or a text. Only the assistant's words, the completion, or the whole
text are learned; the rest of a row is read and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.data.encode import encode
from weightops.recipes.data.packing import pack
from weightops.recipes.data.source import load_rows, split
from weightops.recipes.floor.checking import check, relation
from weightops.recipes.floor.components import Component, component, kind_of
from weightops.recipes.floor.objective import Objective
from weightops.recipes.floor.settings import Data, ModelName, Training
from weightops.recipes.floor.unfinished import check_free

if TYPE_CHECKING:
    from weightops.recipes.floor.trainer import Fitted


@dataclass(frozen=True)
class SftRecipe:
    """A model to tune.

    Attributes:
        base: Model to start from: a folder, ``org/name``, an alias.
        data: Rows of messages, of prompt and completion, or of text; see docs/data.md.
        model_class: Kind of model. Only causal language models are available yet.
        objective: What to minimise, by name and parameters.
        chat: Put a plain prompt and completion through the model's chat template, where it has one.
        tokens: Longest row; a longer one is cut at its end.
        packing: Put several short rows into one of ``tokens`` tokens, so that little is padded. No row sees another.
        training: How long and how hard. Nothing is frozen unless it says so.
    """

    base: ModelName
    data: Data
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

    @relation("packing")
    def _keeps_rows_apart(self) -> Iterator[str]:
        if self.packing and not self.objective.packs:
            yield f"objective {kind_of(self.objective)} does not keep packed rows apart; set packing to false"


def run(recipe: SftRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Fitted:
    """Read the rows, train, and write a Hugging Face folder, or an adapter's.

    Raises:
        WeightopsError: settings or rows that do not fit, or an output in the way.
    """
    check(recipe)
    check_free(out, overwrite)
    learned, held_out = split(load_rows(recipe.data), recipe.data.held_out, recipe.training.seed)
    from weightops.algebra.loading import load
    from weightops.recipes.floor.trainer import fit

    model, tokenizer = load(recipe.base, "float32", trust_remote_code=trust_remote_code)
    rows = encode(tokenizer, learned, recipe.tokens, chat=recipe.chat)
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
        title="tuning",
        held_out=encode(tokenizer, held_out, recipe.tokens, chat=recipe.chat),
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
