"""The one trainer of the recipes: ``transformers.Trainer`` with an objective of ours.

These work as they do there: ``accelerate launch`` with DDP, FSDP or DeepSpeed, gradient accumulation, checkpoints,
loggers by ``report_to``. Ours are the weighting of items (see objective.py), the order of the rows, the objective's
state, one progress bar, and resuming an interrupted run by the same call.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from weightops.errors import WeightopsError
from weightops.io.progress import Progress, clock
from weightops.io.quiet import quiet_transformers
from weightops.io.replacing import TRAINING
from weightops.recipes.floor.checking import check
from weightops.recipes.floor.components import kind_of
from weightops.recipes.floor.kept_items import KeptItems
from weightops.recipes.floor.model import device_of_process, prepare, rounded
from weightops.recipes.floor.objective import ROW_INDEX, Objective, Row
from weightops.recipes.floor.order import FILLER, Order
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trained_card import Trained, write_card
from weightops.recipes.floor.unfinished import Unfinished, only_training

EMPTY = "empty"
"""Tensor of a batch in which every row is a filler."""
STATE = "objective.safetensors"
"""The objective's state, in a checkpoint."""

RECENT = 10
"""Steps in the mean loss that is shown."""

TIMED = 3
"""Steps whose time the estimate is made from; the first step of a run is slower and not among them."""


class DivergedError(WeightopsError):
    """A training whose loss is no longer a number."""


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    Attributes:
        folder: The model, as transformers reads it.
        losses: The mean loss over the items of each step.
        measured: Loss and metrics on the rows held out; empty where there were none.
    """

    folder: Path
    losses: tuple[float, ...]
    measured: Mapping[str, float]

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last ten steps."""
        return _mean(self.losses[-RECENT:])


def fit(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    objective: Objective,
    training: Training,
    out: Path,
    *,
    title: str = "training",
    held_out: Sequence[Row] = (),
    beside: Callable[[Path], object] | None = None,
    overwrite: bool = False,
) -> Fitted:
    """Train a model on rows and write it, rounded once, as a Hugging Face folder (or a PEFT adapter's).

    Checkpoints are kept beside ``out`` until it is written. After an interruption the same call resumes from the last
    one and gives the same weights. ``out`` never holds a half-trained model.

    Args:
        model: In the ``base_dtype`` of the training's update.
        tokenizer: Its tokenizer, saved with it.
        rows: What to train on.
        objective: What to minimise.
        training: Settings of the training.
        out: Folder to make.
        title: Name of the progress bar.
        held_out: Rows to measure at the end.
        beside: Called with the folder, to write further files there.
        overwrite: Replace an output that exists, or an unfinished run of something else.

    Raises:
        WeightopsError: wrong settings, no rows, rows that the objective cannot read, the output exists, another process
            is training to it, or the loss is not finite.
    """
    check(training)
    if not rows:
        raise WeightopsError(f"{title}: no rows to train on")
    _check_rows([*rows, *held_out], objective)
    base = str(getattr(model, "name_or_path", ""))
    with only_training(out), quiet_transformers():
        unfinished = Unfinished.of(out, overwrite, model, rows, objective, training)
        objective = objective.ready(model, tokenizer, rows)
        trainer = _Trainer(prepare(model, training), tokenizer, rows, objective, training, unfinished.folder, title)
        processes = trainer.accelerator
        if processes.is_main_process:
            unfinished.begin()
        processes.wait_for_everyone()
        checkpoint = unfinished.checkpoint()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        measured = measure(trainer.model, held_out, objective, training.batch) if held_out else {}
        weights = {}
        if not training.update.state_in_optimizer:
            weights = rounded(processes.get_state_dict(trainer.model_wrapped), trainer.model, training.save_dtype)
        losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        if processes.is_main_process:
            with unfinished.finish() as folder:
                training.update.write(trainer.model, tokenizer, weights, training.save_dtype, folder)
                counts = {"steps": len(losses), "rows": len(rows), **_tokens(rows, objective)}
                log = {**counts, "losses": losses, "held_out": measured}
                (folder / TRAINING).write_text(json.dumps(log, indent=2) + "\n")
                if beside is not None:
                    beside(folder)
                sizes = {"rows": len(rows), "held_out": len(held_out), "steps": len(losses)}
                trained = Trained(base, title, **sizes, objective=objective, training=training, measured=measured)
                write_card(trained, folder)
        processes.wait_for_everyone()
    return Fitted(out, losses, measured)


def measure(model: Any, rows: Sequence[Row], objective: Objective, batch: int) -> dict[str, float]:
    """The mean over all items of the loss and the objective's metrics."""
    device = next(model.parameters()).device
    totals: dict[str, float] = {}
    items = 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            tensors = {k: v.to(device) for k, v in objective.batch(rows[start : start + batch]).items()}
            loss, kept = objective.loss_and_items(model, tensors)
            sums = {"loss": loss.item(), **objective.metrics(model, tensors)}
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            items += objective.items(tensors) if kept is None else kept.item()
    return {name: value / (items or 1) for name, value in totals.items()}


def _check_rows(rows: Sequence[Row], objective: Objective) -> None:
    missing = sorted({name for row in rows for name in objective.reads if name not in row})
    if missing:
        raise WeightopsError(
            f"objective {kind_of(objective)}: reads {', '.join(objective.reads)} of each row, but rows have no "
            f"{', '.join(missing)}; choose another objective"
        )


def _tokens(rows: Sequence[Row], objective: Objective) -> dict[str, int]:
    """How many tokens the rows have, and how many of these the loss is on; each row once, whatever the epochs."""
    learnt, total = sum(map(objective.learnt_tokens, rows)), sum(map(objective.length, rows))
    return {"learnt_tokens": learnt, "total_tokens": total}


class _Trainer(transformers.Trainer):
    """The loss is the objective's, over the items of the whole step."""

    loss_is_scaled_for_ga = True
    objective: Objective
    order: Order

    def __init__(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], objective: Objective, training: Training,
        folder: Path, title: str,
    ) -> None:  # fmt: skip
        self.objective, self.training = objective, training
        args = arguments(training, folder)
        multiple = args.per_device_train_batch_size * args.world_size if args.world_size > 1 else 1
        self.order = Order([objective.length(row) for row in rows], training.batch, training.seed, multiple)
        self.watch = _Watch(self.order, title)
        self.kept_items = KeptItems()
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer if training.keep_checkpoints else None,  # each checkpoint is then a whole model
            train_dataset=_Rows(rows),
            data_collator=self._collate,
            callbacks=[self.watch, _Steps(objective)],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order

    def create_optimizer(self, model: Any = None) -> Any:
        """The update's own optimizer, if it has one, else transformers' AdamW."""
        if self.optimizer is None:
            steps = self.args.max_steps if self.args.max_steps > 0 else self.order.steps * self.training.epochs
            self.optimizer = self.training.update.optimizer(self.model, self.training, steps, self.watch.tell)
        return super().create_optimizer(model)

    def _collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The batch of some rows without the fillers; if there is no other, of one, which counts for nothing."""
        real = [row for row in rows if row[ROW_INDEX] != FILLER]
        return self.objective.batch(real) if real else {**self.objective.batch(rows[:1]), EMPTY: torch.tensor([True])}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        real = [batch for batch in batch_samples if EMPTY not in batch]
        items = torch.tensor(float(sum(map(self.objective.items, real))), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """These inputs' share of the mean loss of the step; the processes' gradients are averaged afterwards."""
        items = self.objective.items(inputs) if num_items_in_batch is None else num_items_in_batch
        before = {name: tensor.clone() for name, tensor in self.objective.state().items()}
        empty = EMPTY in inputs
        batch = {name: tensor for name, tensor in inputs.items() if name != EMPTY}
        loss, kept = self.objective.loss_and_items(model, batch)
        if empty:
            loss, kept = loss * 0, None if kept is None else kept * 0
            for name, tensor in self.objective.state().items():
                tensor.copy_(before[name])
        if self.args.world_size > 1:
            self._add_up(before)
        share: torch.Tensor = loss * (self.args.world_size / (float(items) or 1.0))
        self.kept_items.add(kept, float(items) or 1.0)
        return share

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch: its gradient, and its share of the loss of the step."""
        share = super().training_step(model, inputs, num_items_in_batch)
        return self.kept_items.divide(share, model, self.accelerator)

    def _add_up(self, before: Mapping[str, torch.Tensor]) -> None:
        """Give every process what all of them added to the objective's state in this micro-batch."""
        for name, tensor in self.objective.state().items():
            added = (tensor - before[name]).to(self.accelerator.device)
            tensor.copy_(before[name] + self.accelerator.reduce(added, "sum").to(tensor.device))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.training.update.state_in_optimizer:
            Path(output_dir or str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
        else:
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.training.update.state_in_optimizer:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and (state := self.objective.state()):
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(output_dir, STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (state := self.objective.state()):
            saved = load_file(Path(checkpoint, STATE))
            for name, tensor in state.items():
                tensor.copy_(saved[name])


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return {**self.rows[index], ROW_INDEX: index}


class _Steps(transformers.TrainerCallback):
    """Tells the objective which step begins."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.objective.begin_step(state.global_step)


class _Watch(transformers.TrainerCallback):
    """Shows progress, an estimate of the whole time and the mean loss; ends the run where the loss is not finite."""

    def __init__(self, order: Order, title: str) -> None:
        self.order, self.title = order, title
        self.recent: list[float] = []
        self.begun, self.first_done = 0, 0.0

    def tell(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        self.bar.tell(text)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = state.global_step // self.order.steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = state.global_step
        self.bar = Progress(
            state.max_steps, self.title, unit="step", begun=self.begun, delay=0, shown=state.is_world_process_zero
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.done)
        if state.global_step == self.begun + 1:
            self.first_done = time.monotonic()
        elif state.global_step == self.begun + 1 + TIMED and state.global_step < state.max_steps:
            seconds = (time.monotonic() - self.first_done) / TIMED
            steps = state.max_steps - self.begun
            self.bar.tell(f"{self.title}: {steps} steps of about {seconds:.2g} s, {clock(steps * seconds)} in all")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"]):
            self.bar.close()
            raise DivergedError(f"{self.title}: the loss is not a number at step {state.global_step}; try a smaller lr")
        self.recent = [*self.recent, logs["loss"]][-RECENT:]
        self.bar.note(f"mean loss of the last {len(self.recent)} steps {_mean(self.recent):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / max(len(losses), 1)


def arguments(training: Training, folder: Path) -> Any:
    """The settings as ``transformers.TrainingArguments``.

    Raises:
        WeightopsError: a step cannot be split over the processes, or an argument is unknown or refused.
    """
    unknown = training.arguments.keys() - transformers.TrainingArguments.__dataclass_fields__.keys()
    if unknown:
        names = ", ".join(sorted(unknown))
        raise WeightopsError(f"training.arguments: {names}: not in transformers.TrainingArguments; check the spelling")
    chosen: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 1,
        "save_total_limit": None if training.keep_checkpoints else 1,
        "use_cpu": device_of_process().type == "cpu",
        "dataloader_pin_memory": torch.cuda.is_available(),
        **training.arguments,
        "output_dir": str(folder),
        "learning_rate": training.lr,
        "num_train_epochs": training.epochs,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup,
        "max_grad_norm": training.clip,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "bf16": training.precision == "bf16",
        "gradient_accumulation_steps": training.accumulate,
        "save_strategy": "steps" if training.checkpoint_every else "no",
        "save_steps": training.checkpoint_every or 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
    }
    try:
        theirs = transformers.TrainingArguments(**chosen)
    except (ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WeightopsError(f"training.arguments: transformers refuses them ({reason}); correct them") from error
    theirs._n_gpu = min(theirs.n_gpu, 1)  # `accelerate launch` drives several GPUs, not threads of one process
    parts = theirs.world_size * training.accumulate
    if training.batch % parts:
        raise WeightopsError(
            f"training.batch: {training.batch} rows a step cannot be split into {theirs.world_size} processes x "
            f"{training.accumulate} micro-batches; choose a multiple of {parts}"
        )
    theirs.per_device_train_batch_size = training.batch // parts
    return theirs
