"""The one trainer of the recipes: ``transformers.Trainer`` with an objective of ours.

What its users know works unchanged: ``accelerate launch`` with DDP, FSDP or DeepSpeed, gradient accumulation,
checkpoints, loggers by ``report_to``. Ours are the weighing of items (see objective.py), the order of the rows, one
progress bar, and that a run which was interrupted goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from weightops.errors import WeightopsError
from weightops.io.quiet import quiet_transformers
from weightops.recipes.floor.checking import check
from weightops.recipes.floor.components import kind_of
from weightops.recipes.floor.model import prepare, rounded
from weightops.recipes.floor.objective import Objective, Row
from weightops.recipes.floor.order import Order
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.trained_card import Trained, write_card
from weightops.recipes.floor.unfinished import Unfinished

LOG = "training.json"


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

    Checkpoints lie beside ``out`` until it is there; the same call goes on from the last one and ends in the same
    weights. A half-trained model never lies at ``out``.

    Args:
        model: In fp32.
        tokenizer: Its tokenizer, saved with it.
        rows: What to train on.
        objective: What to minimise.
        training: How long and how hard.
        out: Folder to make.
        title: What the progress bar says.
        held_out: Rows to measure at the end.
        beside: Writes what else belongs in the folder.
        overwrite: Replace an output that exists, or an unfinished run of something else.

    Raises:
        WeightopsError: settings that do not fit, no rows, rows that the objective cannot read, an output in the way, or
            a loss that is not finite.
    """
    check(training)
    if not rows:
        raise WeightopsError(f"{title}: no rows to train on")
    _check_rows([*rows, *held_out], objective)
    base = str(getattr(model, "name_or_path", ""))
    unfinished = Unfinished.of(out, overwrite, model, rows, objective, training)
    with quiet_transformers():
        objective = objective.ready(model, tokenizer)
        trainer = _Trainer(prepare(model, training), rows, objective, training, unfinished.folder, title)
        processes = trainer.accelerator
        if processes.is_main_process:
            unfinished.begin()
        processes.wait_for_everyone()
        checkpoint = unfinished.checkpoint()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        measured = measure(trainer.model, held_out, objective, training.batch) if held_out else {}
        weights = rounded(processes.get_state_dict(trainer.model_wrapped), trainer.model, training.save_dtype)
        losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        if processes.is_main_process:
            with unfinished.finish() as folder:
                training.update.write(trainer.model, tokenizer, weights, training.save_dtype, folder)
                log = {"steps": len(losses), "rows": len(rows), "losses": losses, "held_out": measured}
                (folder / LOG).write_text(json.dumps(log, indent=2) + "\n")
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
    items = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            tensors = {k: v.to(device) for k, v in objective.batch(rows[start : start + batch]).items()}
            found = {"loss": objective.loss(model, tensors).item(), **objective.metrics(model, tensors)}
            totals = {name: totals.get(name, 0.0) + value for name, value in found.items()}
            items += objective.items(tensors)
    return {name: value / max(items, 1) for name, value in totals.items()}


def _check_rows(rows: Sequence[Row], objective: Objective) -> None:
    missing = sorted({name for row in rows for name in objective.reads if name not in row})
    if missing:
        raise WeightopsError(
            f"objective {kind_of(objective)}: needs rows with {', '.join(objective.reads)}; "
            f"these have no {', '.join(missing)}; choose another objective"
        )


class _Trainer(transformers.Trainer):
    """The loss is the objective's, over the items of the whole step."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, rows: Sequence[Row], objective: Objective, training: Training, folder: Path, title: str
    ) -> None:
        self.objective = objective
        self.order = Order([objective.length(row) for row in rows], training.batch, training.seed)
        super().__init__(
            model=model,
            args=arguments(training, folder),
            train_dataset=_Rows(rows),
            data_collator=objective.batch,
            callbacks=[_Watch(self.order, title)],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        items = torch.tensor(sum(map(self.objective.items, batch_samples)), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The share of these inputs in the mean loss of the step; the processes' gradients are averaged after it."""
        items = self.objective.items(inputs) if num_items_in_batch is None else num_items_in_batch
        return self.objective.loss(model, inputs) * (self.args.world_size / max(int(items), 1))


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]


class _Watch(transformers.TrainerCallback):
    """A progress bar with the time left and the loss; ends the run where the loss is no longer finite."""

    def __init__(self, order: Order, title: str) -> None:
        self.order, self.title = order, title
        self.bar: Any = None
        self.recent: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = state.global_step // math.ceil(len(self.order) / self.order.batch)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = not state.is_world_process_zero
        begun = state.global_step
        self.bar = tqdm(total=state.max_steps, initial=begun, desc=self.title, unit="step", leave=False, disable=hidden)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"]):
            self.bar.close()
            raise WeightopsError(
                f"{self.title}: the loss is not a number at step {state.global_step}; try a smaller lr"
            )
        self.recent = [*self.recent[-9:], logs["loss"]]
        self.bar.set_postfix(loss=f"{sum(self.recent) / len(self.recent):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def arguments(training: Training, folder: Path) -> Any:
    """The training's settings in the words of ``transformers.TrainingArguments``.

    Raises:
        WeightopsError: a step that cannot be split over the processes, or an argument that there is not.
    """
    unknown = training.arguments.keys() - transformers.TrainingArguments.__dataclass_fields__.keys()
    if unknown:
        said = ", ".join(sorted(unknown))
        raise WeightopsError(f"training.arguments: {said}: not in transformers.TrainingArguments; check the spelling")
    chosen: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 1,
        "save_total_limit": 1,
        "use_cpu": not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true",
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
        made = transformers.TrainingArguments(**chosen)
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).strip().partition("\n")[0]
        raise WeightopsError(f"training.arguments: transformers refuses them ({said})") from error
    made._n_gpu = min(made.n_gpu, 1)  # several GPUs are driven by `accelerate launch`, not by threads of one process
    parts = made.world_size * training.accumulate
    if training.batch % parts:
        raise WeightopsError(
            f"training.batch: {training.batch} rows a step cannot be split into {made.world_size} processes x "
            f"{training.accumulate} micro-batches; choose a multiple of {parts}"
        )
    made.per_device_train_batch_size = training.batch // parts
    return made
