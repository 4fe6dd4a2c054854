"""What every recipe can say about its training, as frozen values that know what is wrong with them.

Each class has ``faults()``: pairs of a field and what is wrong with its value. They hold no torch and no transformers,
so that reading and checking a recipe takes no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from weightops.errors import WeightopsError

Fault = tuple[str, str]

VOCABULARY_AND_NORMS = r"embed|lm_head|norm|wte|wpe|ln_"
"""Embeddings, head and norms: a guard vector leaves them out, so what they learned would be lost."""

OWNED = (
    *("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "max_grad_norm", "weight_decay", "seed", "bf16", "save_strategy"),
    *("save_steps", "disable_tqdm", "remove_unused_columns", "logging_nan_inf_filter", "resume_from_checkpoint"),
)
"""TrainingArguments that a recipe's own settings decide."""


@dataclass(frozen=True)
class Lora:
    """Train a low-rank adapter by PEFT (LoRA, arXiv 2106.09685) instead of the weights.

    Attributes:
        rank: Of the two factors.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of the adapter's inputs left out at each step.
        targets: Ends of the names of the modules it goes on; none is every linear layer but the head.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def faults(self) -> Iterator[Fault]:
        """What is wrong, by field."""
        yield from _at_least(self, 1, "rank")
        if not 0 <= self.dropout < 1:
            yield "dropout", f"must be at least 0 and below 1; found {self.dropout:g}"
        if not self.alpha > 0:
            yield "alpha", f"must be above 0; found {self.alpha:g}"


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
        freeze: Regular expressions; a parameter whose name one of them finds stays as it is.
        lora: Train an adapter instead.
        checkpoint_every: Steps between checkpoints; 0 for none. A run that was interrupted goes on from the last one.
        save_dtype: What the weights are rounded to at the end.
        arguments: Any other ``transformers.TrainingArguments`` by name, ``gradient_checkpointing: true`` for instance.
    """

    lr: float = 2e-5
    epochs: int = 2
    batch: int = 8
    accumulate: int = 1
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    freeze: tuple[str, ...] = (VOCABULARY_AND_NORMS,)
    lora: Lora | None = None
    checkpoint_every: int = 200
    save_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def faults(self) -> Iterator[Fault]:
        """What is wrong, by field."""
        yield from _at_least(self, 1, "epochs", "batch", "accumulate")
        yield from _at_least(self, 0, "checkpoint_every", "clip", "weight_decay", "seed")
        if not 0 < self.lr < 1:
            yield "lr", f"must lie between 0 and 1; found {self.lr:g}"
        if not 0 <= self.warmup < 1:
            yield "warmup", f"must be at least 0 and below 1: a share of the steps; found {self.warmup:g}"
        if self.accumulate >= 1 and self.batch % self.accumulate:
            yield "accumulate", f"must divide batch ({self.batch}); found {self.accumulate}"
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                yield "freeze", f"{pattern!r} is not a regular expression ({error})"
        for name in sorted(self.arguments.keys() & set(OWNED)):
            yield "arguments", f"{name} is decided by the recipe's own settings; leave it out"


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
    rename: Mapping[str, Any] = field(default_factory=dict)
    held_out: float = 0.0

    def faults(self) -> Iterator[Fault]:
        """What is wrong, by field."""
        if bool(self.files) == bool(self.hub):
            yield "files", "name either files or a data set of the hub"
        for file in self.files:
            if not Path(file).name.removesuffix(".gz").endswith((".jsonl", ".json", ".parquet")):
                yield "files", f"{file}: neither JSON Lines (.jsonl) nor Parquet (.parquet)"
        if not 0 <= self.held_out < 1:
            yield "held_out", f"must be at least 0 and below 1; found {self.held_out:g}"


def check(settings: Any) -> None:
    """Raise everything that is wrong with a settings value and those inside it.

    Raises:
        WeightopsError: each fault with the path of its field.
    """
    if problems := [f"{'.'.join(path)}: {problem}" for path, problem in faults_in(settings)]:
        raise WeightopsError(*problems)


def faults_in(settings: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every fault of a settings value and of those inside it, with the path of its field."""
    for name, problem in settings.faults():
        yield (*path, name), problem
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            yield from faults_in(value, (*path, each.name))


def _at_least(settings: Any, least: int, *names: str) -> Iterator[Fault]:
    for name in names:
        if not getattr(settings, name) >= least:
            yield name, f"must be at least {least}; found {getattr(settings, name)}"
