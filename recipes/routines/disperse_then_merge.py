"""Disperse-then-Merge (arXiv 2405.13432): rows in parts, a sub-model tuned on each, their changes averaged on the base.

The parts' models stay in ``OUT-parts`` beside the merged one. Each notes what it was trained on, so a run that was
killed resumes with the part that it was at, and a part that is there is not trained again. Adapters are merged as
products, so the result is the mean of the sub-models. The authors' code averages each of the two factors by itself,
which is not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weightops.errors import Message, Remedy, WeightopsError
from weightops.io.small_files import read_small
from weightops.recipes.data.encode import check_columns, encode, learnt_tokens, say, unlearnable
from weightops.recipes.data.source import load_rows, split
from weightops.recipes.floor.checking import check, plain
from weightops.recipes.floor.components import component, kind_of
from weightops.recipes.floor.settings import Training
from weightops.recipes.floor.unfinished import check_free
from weightops.recipes.parts.disperse import Dispersal, Dispersed, disperse
from weightops.recipes.routines.sft import SftRecipe, columns_of, train
from weightops.rows.row import Row

if TYPE_CHECKING:
    from weightops.algebra.checkpoint import Checkpoint, Delta
    from weightops.recipes.floor.trainer import Fitted

LOG, REPORT = "training.json", "report.json"
KIND = "weightops disperse-then-merge"
_PART = re.compile(r"part-\d+|\.part-\d+\.training")


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
        model_class: Kind of model. Only causal language models are available yet.
        objective: What to minimise, by name and parameters.
        chat: Put a plain prompt and completion through the model's chat template, where it has one.
        tokens: Longest row; a longer one is cut at its end.
        packing: Put several short rows into one of ``tokens`` tokens, so that little is padded. No row sees another.
        training: How long and how hard each sub-model is trained. The seed is the same for all.
        disperse: How the rows are dispersed into parts.
        weigh: What a sub-model's change counts for: the same for each (``equal``), or by its part's ``rows`` or learnt
            ``tokens``.
    """

    training: Training = field(default_factory=_paper_training)
    disperse: Dispersal = field(default_factory=Dispersal)
    weigh: Literal["equal", "rows", "tokens"] = "equal"


@dataclass(frozen=True)
class _Trained:
    """A sub-model.

    Attributes:
        number: Of its part.
        folder: Where it lies.
        rows: How many it was trained on.
        tokens: Learnt tokens of its part.
        losses: The mean loss of each step.
        problem: Why it is left out; none where it is merged.
    """

    number: int
    folder: Path
    rows: int
    tokens: int
    losses: tuple[float, ...] = ()
    problem: str | None = None


def run(
    recipe: DisperseThenMergeRecipe, out: Path, overwrite: bool = False, *, trust_remote_code: bool = False
) -> Fitted:
    """Disperse, train each part, merge, measure, and write a Hugging Face folder.

    The losses of the result are those of all parts one after another; measured are ``base``, ``part 0`` and so on, and
    ``merged``.

    Raises:
        WeightopsError: settings or rows that do not fit, an output or another training's part in the way, several
            processes, or no part whose training ended well.
    """
    from weightops.algebra.opening import open_checkpoint
    from weightops.recipes.floor.trainer import Fitted

    check(recipe)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise WeightopsError("disperse_then_merge trains in one process; run it without accelerate launch")
    check_free(out, overwrite)
    data = load_rows(recipe.data, unlearnable)
    check_columns(data, columns_of(recipe), f"objective {kind_of(recipe.objective)}")
    learned, held_out = split(data, recipe.data.held_out, recipe.training.seed)
    dispersed = disperse(learned, recipe.disperse, recipe.base, say)
    base = open_checkpoint(recipe.base)
    parts = [[learned[row] for row in rows] for rows in dispersed.parts]
    stamps = [_stamp(recipe, base, rows) for rows in parts]
    place = out.absolute().with_name(f"{out.absolute().name}-parts")
    _check_parts(place, stamps, overwrite)
    measure = _measurer(recipe, held_out, trust_remote_code)
    measured = {"base": measure(base)}
    tokens = _learnt_tokens(recipe, parts, trust_remote_code)
    trained = [
        _trained(recipe, number, rows, place / f"part-{number}", stamp, overwrite, count, trust_remote_code)
        for number, (rows, stamp, count) in enumerate(zip(parts, stamps, tokens, strict=True))
    ]
    kept = [part for part in trained if part.problem is None]
    if not kept:
        raise WeightopsError("no part's training ended well", *(str(part.problem) for part in trained))
    shares = _shares(kept, recipe.weigh)
    merged = base
    for part in kept:
        merged = merged + shares[part.number] * _change(recipe, base, part.folder)
    measured |= {f"part {part.number}": measure(base + _change(recipe, base, part.folder)) for part in kept}
    measured["merged"] = measure(merged)
    measured = measured if held_out else {}
    _write_report(place / REPORT, recipe, dispersed, trained, shares, measured)
    merged.save(out, overwrite=overwrite)
    return Fitted(out, tuple(loss for part in kept for loss in part.losses), measured)


def _stamp(recipe: DisperseThenMergeRecipe, base: Checkpoint, rows: Sequence[Row]) -> str:
    """A digest of everything that decides a sub-model."""
    from weightops.io.cache import stamp

    files = {tensor.file for tensor in base.source.tensors.values()}
    for folder in base.folders:
        files |= {file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".jinja")}
    settings = {name: value for name, value in plain(recipe).items() if name not in ("data", "disperse", "weigh")}
    texts = [replace(row, place="") for row in rows]
    return hashlib.sha256(repr((stamp(sorted(files), 1), settings, texts)).encode("utf-8", "replace")).hexdigest()


def _check_parts(place: Path, stamps: Sequence[str], overwrite: bool) -> None:
    """Refuse parts of another training, before anything is trained; those beyond the number wanted go.

    Raises:
        WeightopsError: parts of another training and no ``overwrite``, or what this routine did not write.
    """
    if not os.path.lexists(place):
        return
    if place.is_symlink() or not place.is_dir():
        raise WeightopsError(f"{place}: the parts belong there, but it is a link or a file; choose another output")
    wanted = {f"part-{number}": stamp for number, stamp in enumerate(stamps)}
    names = sorted(path.name for path in place.iterdir())
    strange = [name for name in names if not _PART.fullmatch(name) and name != REPORT]
    if strange or (REPORT in names and _json(place / REPORT).get("kind") != KIND):
        raise WeightopsError(f"{place / (strange or [REPORT])[0]}: the parts belong there; choose another output")
    finished = [name for name in names if not name.startswith(".") and name != REPORT]
    others = [name for name in finished if wanted.get(name) != _log(place / name).get("stamp")]
    if others and not overwrite:
        what = f"{place / others[0]}: was trained on other rows or with other settings"
        remedies = Remedy("choose another {}", "out"), Remedy("replace it with {}", "overwrite", True)
        raise WeightopsError(Message(what, *remedies))
    for name in others:
        check_free(place / name, overwrite)
    for name in set(others) - wanted.keys():
        shutil.rmtree(place / name)


def _log(folder: Path) -> dict[str, Any]:
    """What a finished training says of itself; nothing where there is none."""
    return _json(folder / LOG)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_small(file))
    except (OSError, ValueError, WeightopsError):
        return {}
    return content if isinstance(content, dict) else {}


def _trained(
    recipe: DisperseThenMergeRecipe, number: int, rows: Sequence[Row], folder: Path,
    stamp: str, overwrite: bool, tokens: int, trust_remote_code: bool,
) -> _Trained:  # fmt: skip
    """The sub-model of one part: the one that is there, or else trained now."""
    from weightops.recipes.floor.trainer import DivergedError

    log = _log(folder)
    if log.get("stamp") == stamp:
        say(f"part {number} is trained already")
        return _ended(_Trained(number, folder, len(rows), tokens, tuple(log["losses"])))
    title = f"part {number} of 0 to {recipe.disperse.parts - 1}"
    try:
        done = train(
            recipe, rows, (), folder, overwrite,
            title=title, beside=_noting(stamp), trust_remote_code=trust_remote_code,
        )  # fmt: skip
    except DivergedError as error:
        shutil.rmtree(folder.with_name(f".{folder.name}.training"), ignore_errors=True)
        return _left_out(_Trained(number, folder, len(rows), tokens, problem=error.problems[0]))
    return _ended(_Trained(number, folder, len(rows), tokens, done.losses))


def _noting(stamp: str) -> Callable[[Path], None]:
    """Writes a stamp into the log of a training."""

    def note(folder: Path) -> None:
        (folder / LOG).write_text(json.dumps({**_log(folder), "stamp": stamp}, indent=2) + "\n")

    return note


def _ended(part: _Trained) -> _Trained:
    """The sub-model, left out where its last step made weights that are not numbers."""
    import torch
    from safetensors.torch import load_file

    tensors = (tensor for file in part.folder.glob("*.safetensors") for tensor in load_file(file).values())
    if all(torch.isfinite(tensor).all() for tensor in tensors):
        return part
    return _left_out(replace(part, problem=f"part {part.number}: its weights are not numbers; try a smaller lr"))


def _left_out(part: _Trained) -> _Trained:
    say(f"part {part.number} is left out of the merge: {part.problem}")
    return part


def _shares(parts: Sequence[_Trained], weigh: str) -> dict[int, float]:
    """What each sub-model counts for; together 1."""
    counts = {part.number: {"equal": 1, "rows": part.rows, "tokens": part.tokens}[weigh] for part in parts}
    return {number: count / sum(counts.values()) for number, count in counts.items()}


def _change(recipe: DisperseThenMergeRecipe, base: Checkpoint, folder: Path) -> Delta:
    """What a sub-model adds to the base."""
    from weightops.algebra.opening import open_adapter, open_checkpoint

    if not recipe.training.update.whole:
        return open_adapter(folder)
    change: Delta = open_checkpoint(folder) - base
    return change


def _learnt_tokens(
    recipe: DisperseThenMergeRecipe, parts: Sequence[Sequence[Row]], trust_remote_code: bool
) -> list[int]:
    """Tokens of each part that are learnt; 0 where they do not matter."""
    if recipe.weigh != "tokens":
        return [0] * len(parts)
    from weightops.algebra.loading import load

    _, tokenizer = load(recipe.base, trust_remote_code=trust_remote_code)
    encoded = [encode(tokenizer, rows, recipe.tokens, chat=recipe.chat, report=lambda note: None) for rows in parts]
    return [learnt_tokens(rows) for rows in encoded]


def _measurer(
    recipe: DisperseThenMergeRecipe, held_out: Sequence[Row], trust_remote_code: bool
) -> Callable[[Checkpoint], float]:
    """Measures the loss of a checkpoint on the rows held out, without writing it; NaN where there are none."""

    def measured(checkpoint: Checkpoint) -> float:
        import torch

        from weightops.algebra.loading import load
        from weightops.recipes.floor.trainer import measure

        if not held_out:
            return math.nan
        model, tokenizer = load(checkpoint, trust_remote_code=trust_remote_code)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        rows = encode(
            tokenizer, held_out, recipe.tokens, chat=recipe.chat, columns=columns_of(recipe), report=lambda note: None
        )
        objective = recipe.objective.ready(model, tokenizer, rows)
        return measure(model.float().to(device), rows, objective, recipe.training.batch)["loss"]

    return measured


def _write_report(
    file: Path, recipe: DisperseThenMergeRecipe, dispersed: Dispersed, trained: Sequence[_Trained],
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
