"""Train a guard: a model that says with one token whether a text is safe (Guard Vector, arXiv 2509.23381).

It learns to judge prefixes, for text that streams (prefix SFT), or with ``prefix_chars: 0`` whole texts only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.prompt import label_ids, prompts, system_text
from weightops.io.progress import say
from weightops.recipes.data.prefixes import FirstUnsafe, corrects_itself, cuts, prefixes
from weightops.recipes.data.source import load_rows, split
from weightops.recipes.floor.checking import check, relation
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import (
    VOCABULARY_AND_NORMS,
    Data,
    ModelName,
    NotNegative,
    Training,
    freezing,
)
from weightops.recipes.floor.unfinished import check_free
from weightops.recipes.objectives.label_decision import LabelDecision
from weightops.rows.labelled import SAFE, UNSAFE, LabelledText, check_both_labels, label_faults, labelled_texts

if TYPE_CHECKING:
    from weightops.recipes.floor.trainer import Fitted

EVIDENCE = Evidence("measured here", ("2509.23381",), "guard.md")


@dataclass(frozen=True)
class GuardRecipe:
    """Settings of a guard to train.

    Attributes:
        base: Model to start from, with a chat template: a folder, ``org/name``, an alias.
        data: Rows of text (or messages), label, and perhaps first_unsafe_char; see docs/data.md.
        labels: The words that the guard answers with, safe then unsafe.
        new_labels: Add a token to the vocabulary for each label that is not one token. The labels' rows of the
            embedding and head train too, and composing a guard with its labels carries them over.
        over_vocabulary: Cross entropy over the whole vocabulary, not over the two labels only.
        prefix_chars: Characters between prefixes; 0 for whole texts only.
        teacher: A guard whose first crossing of its threshold tells where an unsafe text becomes unsafe, for rows that
            do not. Without a teacher, only the whole text of such a row is used.
        threshold: The guard calls a text unsafe from this probability on.
        training: Settings of the training. Unless ``freeze`` is set, embeddings, head and norms are frozen: a guard
            vector leaves them out, so what they learned would be lost.
    """

    base: ModelName
    data: Data
    labels: tuple[str, str] = (SAFE, UNSAFE)
    new_labels: bool = False
    over_vocabulary: bool = False
    prefix_chars: NotNegative = 100
    teacher: ModelName | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    training: Training = field(default_factory=Training)

    @relation("labels")
    def _two_words(self) -> Iterator[str]:
        if "" in self.labels or self.labels[0] == self.labels[1]:
            yield f"must be two different words, safe then unsafe; found {list(self.labels)}"

    @relation("teacher")
    def _has_prefixes(self) -> Iterator[str]:
        if self.teacher and not self.prefix_chars:
            yield "has no effect when prefix_chars is 0"

    @relation("new_labels")
    def _rows_are_written(self) -> Iterator[str]:
        if self.new_labels and not self.training.update.whole:
            yield "an adapter cannot hold the rows of new labels; set training.update to full"

    @relation("new_labels")
    def _other_rows_stay(self) -> Iterator[str]:
        if self.new_labels and self.training.weight_decay:
            yield "training.weight_decay would also change the other rows; set it to 0"


def run(recipe: GuardRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False) -> Fitted:
    """Read the data, train, and write a Hugging Face folder with its ``guard.json``.

    Raises:
        WeightopsError: wrong settings, rows or labels, or the output exists.
    """
    check(recipe)
    check_free(out, overwrite)
    rows = load_rows(recipe.data, label_faults(recipe.labels))
    texts = labelled_texts(rows, recipe.labels)
    if other_words := {str(row.label) for row in rows} & {SAFE, UNSAFE} - set(recipe.labels):
        words, (safe, unsafe) = " and ".join(sorted(other_words)), recipe.labels
        say(f"labels: the data has {words}; the guard learns to answer {safe} and {unsafe} for them")
    return train(recipe, texts, out, overwrite, trust_remote_code=trust_remote_code)


def train(
    recipe: GuardRecipe,
    rows: Sequence[LabelledText],
    out: Path,
    overwrite: bool = False,
    *,
    trust_remote_code: bool = False,
) -> Fitted:
    """Train on rows that are already read, and write the guard."""
    learned, held_out = split(rows, recipe.data.held_out, recipe.training.seed)
    check_both_labels([row for row in learned if not corrects_itself(row)])
    onset: FirstUnsafe = (lambda text: None) if recipe.teacher is None else teacher_onset(recipe, trust_remote_code)
    labelled_prefixes = prefixes(learned, recipe.prefix_chars, onset)
    from weightops.algebra.loading import load
    from weightops.recipes.floor.trainer import fit

    model, tokenizer = load(recipe.base, recipe.training.update.base_dtype, trust_remote_code=trust_remote_code)
    if recipe.new_labels:
        add_labels(model, tokenizer, recipe.labels)
    system = system_text(recipe.labels)
    card = GuardCard(system, recipe.labels, label_ids(tokenizer, recipe.labels), recipe.threshold)

    def encoded(pairs: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        prompt_ids = prompts(tokenizer, system, [text for text, _ in pairs])
        return [{"input_ids": ids, "answer": int(unsafe)} for ids, (_, unsafe) in zip(prompt_ids, pairs, strict=True)]

    return fit(
        model,
        tokenizer,
        encoded(labelled_prefixes),
        LabelDecision(card.label_ids, over_vocabulary=recipe.over_vocabulary),
        freezing(recipe.training, VOCABULARY_AND_NORMS),
        out,
        title="training the guard",
        held_out=encoded([(row.text, row.unsafe) for row in held_out]),
        beside=card.write,
        overwrite=overwrite,
    )


def teacher_onset(recipe: GuardRecipe, trust_remote_code: bool = False) -> FirstUnsafe:
    """From a text to the last character of the first prefix that the teacher calls unsafe, if there is one (ours)."""
    from weightops.guard.presets import open_guard

    guard = open_guard(str(recipe.teacher), trust_remote_code=trust_remote_code)

    def onset(text: str) -> int | None:
        ends = cuts(text, recipe.prefix_chars)
        probabilities = guard.probabilities([text[:end] for end in ends])
        return next((end - 1 for end, p in zip(ends, probabilities, strict=True) if p >= guard.card.threshold), None)

    return onset


def add_labels(model: Any, tokenizer: Any, labels: tuple[str, str]) -> None:
    """Add a token for each label that is not one token, and let the labels' rows train.

    A new row starts as the mean of the others (ours).

    Raises:
        WeightopsError: the weights are sharded over processes, which hides single rows.
    """
    import os

    import torch

    from weightops.recipes.floor.model import ROWS

    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise WeightopsError("new_labels: FSDP and DeepSpeed cannot train single rows; launch with DDP")
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab()
    new = [word for word in labels if word not in vocabulary]
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in new], special_tokens=True)
    ids = tuple(tokenizer.convert_tokens_to_ids(list(labels)))
    old_size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > old_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        fresh = [token for word, token in zip(labels, ids, strict=True) if word in new]
        with torch.no_grad():
            if fresh:
                module.weight[fresh] = module.weight[: min(old_size, min(fresh))].mean(0)
        setattr(module.weight, ROWS, ids)
