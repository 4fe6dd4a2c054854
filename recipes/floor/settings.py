"""What every recipe can say about its training, as frozen values.

Types and ranges are in the fields' types, rules about several fields are methods with ``@relation``; see checking.py.
No torch and no transformers here, so that reading and checking a recipe takes no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from weightops.recipes.floor.checking import relation
from weightops.recipes.floor.components import Component, component
from weightops.recipes.floor.familiar import familiar
from weightops.recipes.floor.update import Update

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
MODEL = object()
"""Marks the type of a field that names a model."""
ModelName = Annotated[str, Field(min_length=1), MODEL]
"""A model: a folder, ``org/name``, an alias, or one of these ``+adapter``."""

PARTS = ("embedding", "head", "norm", "attention", "mlp")
"""Parts of a model that ``freeze`` knows by name, as ``weightops inspect`` shows them."""

VOCABULARY_AND_NORMS = ("embedding", "head", "norm")
"""What a guard vector leaves out."""

OWNED = (
    *("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "max_grad_norm", "weight_decay", "seed", "bf16", "save_strategy"),
    *("save_steps", "disable_tqdm", "remove_unused_columns", "logging_nan_inf_filter", "resume_from_checkpoint"),
)
"""TrainingArguments that a recipe's own settings decide."""


@dataclass(frozen=True)
class Training:
    """How long and how hard to train, on what, and how precisely. The optimizer is AdamW.

    Attributes:
        lr: Peak learning rate.
        epochs: Times through the rows.
        batch: Rows a step, over all processes and micro-batches: the result does not depend on how they are split.
        accumulate: Micro-batches that a process makes of its share of a step, to need less memory.
        schedule: How the rate falls after the warm-up.
        warmup: Share of the steps in which the rate climbs.
        clip: Largest norm of the gradient; 0 for no limit.
        weight_decay: Of AdamW.
        seed: Decides the order of the rows and whatever is drawn.
        precision: ``bf16`` computes under autocast; the weights that train are fp32 either way.
        update: What of the model moves: ``full`` (the weights), ``lora`` (an adapter).
        freeze: What stays as it is: parts of the model (embedding, head, norm, attention, mlp), or regular expressions
            that find names of parameters. Left out, what the routine freezes: nothing, unless it says so.
        checkpoint_every: Steps between checkpoints; 0 for none. A run that was interrupted goes on from the last one.
        save_dtype: What the weights are rounded to at the end.
        arguments: Any other ``transformers.TrainingArguments`` by name, ``gradient_checkpointing: true`` for instance.
    """

    lr: Annotated[float, Field(gt=0, lt=1)] = 2e-5
    epochs: Count = 2
    batch: Count = 8
    accumulate: Count = 1
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: Share = 0.1
    clip: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    seed: NotNegative = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    update: Annotated[Update, Component("updates")] = field(default_factory=lambda: component("updates", "full")())
    freeze: tuple[str, ...] | None = None
    checkpoint_every: NotNegative = 200
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @relation("accumulate")
    def _divides_batch(self) -> Iterator[str]:
        if self.batch % self.accumulate:
            yield f"must divide batch ({self.batch}); found {self.accumulate}"

    @relation("freeze")
    def _regular_expressions(self) -> Iterator[str]:
        for pattern in self.freeze or ():
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{pattern!r} is not a regular expression ({error})"

    @relation("arguments")
    def _not_decided_already(self) -> Iterator[str]:
        for name in sorted(self.arguments.keys() & set(OWNED)):
            here = familiar(name)
            yield f"{name} is decided by " + (here or "the recipe's own settings") + "; leave it out"


def freezing(training: Training, parts: tuple[str, ...]) -> Training:
    """The training, with a routine's own choice of what to freeze where the user made none."""
    return training if training.freeze is not None else replace(training, freeze=parts)


@dataclass(frozen=True)
class Data:
    """Where rows come from: files, or a data set of the hub.

    Attributes:
        files: JSON Lines (``.jsonl``, ``.json``, also ``.gz``) or Parquet files, one after the other.
        hub: ``org/name`` or ``org/name@revision``.
        subset: Configuration of the hub data set.
        split: Split of the hub data set.
        only: Field to value: rows in which they are equal are taken, ``{language: en}`` for instance.
        rename: Field of ours to field of theirs, ``{text: prompt}`` for instance.
        held_out: Share of the rows, drawn by the seed, that is not trained on but measured at the end.
    """

    files: tuple[str, ...] = ()
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    only: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    held_out: Share = 0.0

    @relation("files")
    def _one_source(self) -> Iterator[str]:
        if bool(self.files) == bool(self.hub):
            yield "name either files or a data set of the hub"

    @relation("files")
    def _formats(self) -> Iterator[str]:
        for file in self.files:
            if not Path(file).name.removesuffix(".gz").endswith((".jsonl", ".json", ".parquet")):
                yield f"{file}: neither JSON Lines (.jsonl) nor Parquet (.parquet)"
