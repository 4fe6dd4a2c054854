"""Disperse-then-Merge (arXiv 2405.13432): rows in parts, a sub-model tuned on each, their changes merged on the base.

The parts' models stay in ``OUT-parts`` beside the merged one. Each notes what it was trained on, so a run that was
killed resumes with the parts that it was at, and a part that is there is not trained again. By default adapters are
merged as products, so the result is the mean of the sub-models. The authors' code averages each of the two factors by
itself (``space: factors``), which is not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from weightops.errors import WeightopsError
from weightops.io.progress import say
from weightops.io.replacing import private_folder, put_in_place, recover
from weightops.io.training_log import trained_count
from weightops.recipes.data.source import split
from weightops.recipes.floor.checking import check, plain, relation
from weightops.recipes.floor.components import Component, component, kind_of
from weightops.recipes.floor.evidence import Evidence
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.unfinished import check_free
from weightops.recipes.parts.disperse import Dispersal, Dispersed, disperse
from weightops.recipes.parts.part_training import Launcher, PartTraining, TrainAll
from weightops.recipes.parts.parts_merge import MEAN, PartsMerge
from weightops.recipes.parts.trained_parts import (
    MERGING,
    REPORT,
    TrainedPart,
    check_parts,
    log_of_part,
    note_stamp,
    stamp_of,
)
from weightops.recipes.routines.sft import SftRecipe, recipe_rows, train
from weightops.rows.encode import encode
from weightops.rows.row import Row

if TYPE_CHECKING:
    from weightops.algebra.checkpoint import Checkpoint
    from weightops.recipes.floor.trainer import Fitted

EVIDENCE = Evidence("measured here", ("2405.13432",), "disperse-then-merge.md")

KIND: Final = "weightops disperse-then-merge"
_AROUND_TRAINING: Final = ("data", "disperse", "weigh", "merge", "launch")
"""Settings that do not decide a sub-model, once its rows are known."""

Measure = Callable[["Checkpoint"], float]
"""The loss of a checkpoint on the rows held out."""


def _paper_training() -> Training:
    """LoRA on the MLP, as the authors train."""
    targets = ("gate_proj", "up_proj", "down_proj")
    update = component("updates", "lora")(rank=16, alpha=16.0, dropout=0.05, targets=targets)
    return Training(lr=3e-4, epochs=1, schedule="cosine", clip=0.3, update=update)


@dataclass(frozen=True)
class DisperseThenMergeRecipe(SftRecipe):
    """A model merged from sub-models that were each tuned on a part of the rows.

    Attributes:
        base: Model that every sub-model starts from: a folder, ``org/name``, an alias.
        data: Rows of messages, of prompt and completion, or of text; see docs/data.md. Those held out are measured with
            the base, with each sub-model and with the merged one.
        rewrite: A pass that makes the rows to learn from those of ``data``, held-out ones included; none by default.
        model_class: Kind of model. Only causal language models are available yet.
        objective: What to minimise, by name and parameters.
        chat: Put a plain prompt and completion through the model's chat template, where it has one.
        tokens: Longest row; a longer one is cut at its end.
        packing: Put several short rows into one of ``tokens`` tokens, so that little is padded. No row sees another.
        training: How long and how hard each sub-model is trained. The seed is the same for all.
        disperse: How the rows are dispersed into parts.
        launch: Where the parts are trained: ``in_this_process`` one after another, ``with_accelerate`` each by several
            processes, ``with_ray`` at once on a cluster.
        weigh: What a sub-model counts for: the same for each (``equal``), or by its part's ``rows`` or learnt
            ``tokens``.
        merge: ``method``, any merge method of task vectors, and its settings. With ``space`` (core, product, factors)
            and perhaps ``rank``, adapters are merged into an adapter, as by ``weightops adapters merge``.
    """

    training: Training = field(default_factory=_paper_training)
    disperse: Dispersal = field(default_factory=Dispersal)
    launch: Annotated[Launcher, Component("launchers")] = field(
        default_factory=lambda: component("launchers", "in_this_process")()
    )
    weigh: Literal["equal", "rows", "tokens"] = "equal"
    merge: Mapping[str, Any] = field(default_factory=lambda: dict(MEAN))

    @relation("merge")
    def _merges(self) -> Iterator[str]:
        update, parts, weigh = kind_of(self.training.update), self.disperse.parts, self.weigh
        if self.merge != MEAN:
            try:
                PartsMerge.of(self.merge, parts, adapters=update == "lora", weighed=weigh != "equal")
            except WeightopsError as error:
                yield from error.problems


def run(
    recipe: DisperseThenMergeRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False
) -> Fitted:
    """Disperse, train each part, merge, measure, and write a Hugging Face folder, or an adapter's.

    The losses of the result are those of all parts one after another; measured are ``base``, ``part 0`` and so on, and
    ``merged``.

    Raises:
        WeightopsError: settings or rows that do not fit, an output or another training's part in the way, several
            processes, or the training of every part failed.
    """
    from weightops.algebra.opening import open_checkpoint
    from weightops.recipes.floor.trainer import Fitted

    check(recipe)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise WeightopsError(
            "disperse_then_merge runs in one process, which launches others; run it without accelerate launch, and set "
            "launch to with_accelerate"
        )
    check_free(out, overwrite)
    data = recipe_rows(recipe, out)
    learned, held_out = split(data, recipe.data.held_out, recipe.training.seed)
    base = open_checkpoint(recipe.base)
    place = out.absolute().with_name(f"{out.absolute().name}-parts")
    measure = _measurer(recipe, held_out, trust_remote_code)
    with recipe.launch.ready(place, _local(recipe.base)) as train_all:
        dispersed = disperse(learned, recipe.disperse, recipe.base, say)
        parts = [tuple(learned[row] for row in rows) for rows in dispersed.parts]
        settings = {name: value for name, value in plain(recipe).items() if name not in _AROUND_TRAINING}
        stamps = [stamp_of(base, settings, rows) for rows in parts]
        check_parts(place, stamps, KIND, overwrite)
        measured = {"base": measure(base)}
        trained = _trained([
            PartTraining(number, f"part {number} of 0 to {len(parts) - 1}", recipe, rows, place / f"part-{number}",
                         stamp, overwrite, trust_remote_code)
            for number, (rows, stamp) in enumerate(zip(parts, stamps, strict=True))
        ], train_all)  # fmt: skip
    kept = [part for part in trained if part.problem is None]
    if not kept:
        raise WeightopsError("the training of every part failed", *(str(part.problem) for part in trained))
    measured |= {f"part {part.number}": measure(base + part.change(base)) for part in kept}
    shares = _shares(kept, recipe.weigh)
    private_folder(place / MERGING)
    new, replaced = place / MERGING / "merged", place / MERGING / "replaced"
    recover(out, replaced)
    _merge(recipe, base, kept, shares, new)
    measured["merged"] = measure(_opened(base, new))
    measured = measured if held_out else {}
    _write_report(place / REPORT, recipe, dispersed, trained, shares, measured)
    put_in_place(new, out, replaced, overwrite=overwrite)
    shutil.rmtree(place / MERGING)
    return Fitted(out, tuple(loss for part in kept for loss in part.losses), measured)


def train_part(training: PartTraining) -> None:
    """Train one part, in whichever process a launcher calls this.

    Raises:
        WeightopsError: rows or settings that do not fit, or a loss that is not a number.
    """
    train(
        training.recipe, training.rows, (), training.folder, training.overwrite, title=training.title,
        beside=lambda folder: note_stamp(folder, training.stamp), trust_remote_code=training.trust_remote_code,
    )  # fmt: skip


def _local(base: str) -> list[Path]:
    """The folders on this machine that a model's name holds."""
    return [Path(part).expanduser() for part in (base, *base.split("+")) if Path(part).expanduser().exists()]


def _trained(trainings: Sequence[PartTraining], train_all: TrainAll) -> list[TrainedPart]:
    """The sub-model of each part: the one that is there, or else trained now."""
    missing = [each for each in trainings if log_of_part(each.folder).get("stamp") != each.stamp]
    for each in trainings:
        if each not in missing:
            say(f"part {each.number} is trained already")
    problems = train_all(missing, train_part) if missing else {}
    return [_ended(each, problems.get(each.number)) for each in trainings]


def _ended(training: PartTraining, problem: str | None) -> TrainedPart:
    """The sub-model of a part, left out where its training failed or ended in weights that are not numbers."""
    number, folder, rows = training.number, training.folder, len(training.rows)
    if problem is None and not _is_finite(folder):
        problem = f"part {number}: its weights are not numbers; try a smaller lr"
    if problem is not None:
        say(f"part {number} is left out of the merge: {problem}")
        return TrainedPart(number, folder, rows, problem=problem)
    shutil.rmtree(training.run_folder, ignore_errors=True)
    log = log_of_part(folder)
    return TrainedPart(number, folder, rows, log.get("learnt_tokens"), tuple(log["losses"]))


def _is_finite(folder: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    tensors = (tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _shares(parts: Sequence[TrainedPart], weigh: str) -> dict[int, float]:
    """What each sub-model counts for; together 1.

    Raises:
        WeightopsError: by tokens, and a training that did not count them.
    """
    if weigh == "tokens":
        counts = {part.number: trained_count(part.folder, weigh) for part in parts}
    else:
        counts = {part.number: part.rows if weigh == "rows" else 1 for part in parts}
    return {number: count / sum(counts.values()) for number, count in counts.items()}


def _merge(
    recipe: DisperseThenMergeRecipe,
    base: Checkpoint,
    parts: Sequence[TrainedPart],
    shares: Mapping[int, float],
    new: Path,
) -> None:
    """Write the sub-models merged, as a folder."""
    adapters, weighed = kind_of(recipe.training.update) == "lora", recipe.weigh != "equal"
    merge = PartsMerge.of(recipe.merge, recipe.disperse.parts, adapters=adapters, weighed=weighed)
    merge.merged(base, parts, shares).save(new, overwrite=True)


def _opened(base: Checkpoint, folder: Path) -> Checkpoint:
    """A model's folder, or the base with an adapter's."""
    from weightops.algebra.opening import is_added, open_adapter, open_checkpoint

    return base + open_adapter(folder) if is_added(folder) else open_checkpoint(folder)


def _measurer(recipe: DisperseThenMergeRecipe, held_out: Sequence[Row], trust_remote_code: bool) -> Measure:
    """Measures the loss of a checkpoint on the rows held out, without writing it; NaN where there are none."""

    def measured(checkpoint: Checkpoint) -> float:
        import torch

        from weightops.algebra.loading import load
        from weightops.recipes.floor.trainer import measure

        if not held_out:
            return math.nan
        model, tokenizer = load(checkpoint, trust_remote_code=trust_remote_code)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        fields = recipe.objective.fields
        rows = encode(tokenizer, held_out, recipe.tokens, chat=recipe.chat, fields=fields, report=lambda note: None)
        objective = recipe.objective.ready(model, tokenizer, rows)
        return measure(model.float().to(device), rows, objective, recipe.training.batch)["loss"]

    return measured


def _write_report(
    file: Path, recipe: DisperseThenMergeRecipe, dispersed: Dispersed, trained: Sequence[TrainedPart],
    shares: Mapping[int, float], measured: Mapping[str, float],
) -> None:  # fmt: skip
    sizes = dispersed.to_json()
    parts = [
        {**size, **asdict(part), "folder": part.folder.name, "share_of_merge": shares.get(part.number, 0.0)}
        for size, part in zip(sizes["parts"], trained, strict=True)
    ]
    report = {"kind": KIND, "recipe": plain(recipe), **sizes, "parts": parts,
              "held_out_loss": dict(measured)}  # fmt: skip
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
