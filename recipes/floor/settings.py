"""The settings that recipes share, training and data, as frozen values.

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
NotNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
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
    *("save_only_model", "ignore_data_skip", "auto_find_batch_size", "label_smoothing_factor"),
)
"""TrainingArguments that other settings of a recipe decide, or that would break resuming."""


@dataclass(frozen=True)
class Training:
    """How long to train, at what rate, which weights, and in what precision. The optimizer is AdamW.

    Attributes:
        lr: Peak learning rate.
        epochs: Times through the rows.
        batch: Rows in a step, over all processes and micro-batches. The result does not depend on how they are split.
        accumulate: Micro-batches into which each process splits its rows of a step, to need less memory.
        schedule: How the learning rate falls after the warm-up.
        warmup: Share of the steps in which the learning rate climbs.
        clip: Largest norm of the gradient; 0 for no limit.
        weight_decay: AdamW's weight decay.
        seed: Decides the order of the rows and everything else that is random.
        precision: ``bf16`` computes under autocast; the weights that train are fp32 either way.
        update: What training changes: ``full`` (the weights), ``lora`` (an adapter), ``sparse`` (some entries).
        freeze: What training must not change: parts of the model (embedding, head, norm, attention, mlp), or regular
            expressions that match names of parameters. By default the routine decides; sft freezes nothing.
        checkpoint_every: Steps between checkpoints; 0 for none. An interrupted run resumes from the last one.
        keep_checkpoints: Keep every checkpoint in the output, as ``checkpoint-200`` and so on, to average them;
            otherwise only the last one is kept, until training ends.
        save_dtype: What the weights are rounded to at the end.
        arguments: Any other ``transformers.TrainingArguments`` by name, ``gradient_checkpointing: true`` for instance.
    """

    lr: Annotated[float, Field(gt=0, lt=1)] = 2e-5
    epochs: Count = 2
    batch: Count = 8
    accumulate: Count = 1
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: Share = 0.1
    clip: NotNegativeNumber = 1.0
    weight_decay: NotNegativeNumber = 0.0
    seed: NotNegative = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    update: Annotated[Update, Component("updates")] = field(default_factory=lambda: component("updates", "full")())
    freeze: tuple[str, ...] | None = None
    checkpoint_every: NotNegative = 200
    keep_checkpoints: bool = False
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
            yield f"{name} is decided by " + (here or "other settings of the recipe") + "; remove it here"


def freezing(training: Training, parts: tuple[str, ...]) -> Training:
    """The training, with the routine's choice of what to freeze if the user made none."""
    return training if training.freeze is not None else replace(training, freeze=parts)


@dataclass(frozen=True)
class Data:
    """Where rows come from: files, or a data set of the hub.

    Attributes:
        files: JSON Lines (``.jsonl``, ``.json``, also ``.gz``) or Parquet files, read in this order.
        hub: ``org/name`` or ``org/name@revision``.
        subset: Configuration of the hub data set.
        split: Split of the hub data set.
        only: Keep the rows whose fields have these values: ``{language: en}``, for instance.
        rename: The data's name for a field: ``{text: prompt}`` reads its field ``prompt`` as ``text``.
        held_out: Share of the rows, drawn by the seed, that is left out of training and measured at the end.
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
            yield "set either data.files or data.hub, not both"

    @relation("files")
    def _formats(self) -> Iterator[str]:
        for file in self.files:
            if not Path(file).name.removesuffix(".gz").endswith((".jsonl", ".json", ".parquet")):
                yield f"{file}: the name must end in .jsonl, .json (or these with .gz) or .parquet"
