"""The runs: what is trained, composed and measured, by the commands that a user would run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiments.steps import weightops_process, write_lines

from . import texts

BASE = "smollm2-135m-instruct"
TEST = 150
"""Unsafe texts in the test, and as many safe ones."""
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
EPOCHS = {"full": 3, "prefix": 1}
"""Both kinds of training then read about as many tokens: an unsafe or safe text has 3.8 prefixes on average."""


def prepare(data: Path, work: Path, seeds: Sequence[int]) -> None:
    """Write the texts: training texts for each seed, one test for all."""
    write_lines(texts.requests(data, "test", 0, TEST), work / "test.jsonl")
    write_lines(texts.lookalikes(data), work / "lookalikes.jsonl")
    for seed in seeds:
        write_lines(texts.requests(data, "train", seed), work / f"train-{seed}.jsonl")


def run(work: Path, seeds: Sequence[int]) -> None:
    """Everything for every seed; what an earlier call finished is kept."""
    evaluate(work, BASE, "base", plain=True)
    for seed in seeds:
        train(work, seed)
        evaluate(work, f"full-{seed}")
        evaluate(work, f"prefix-{seed}")
        evaluate(work, f"target-{seed}", plain=True)
        for scale in SCALES:
            compose(work, f"prefix-{seed}", f"target-{seed}", f"composed-{seed}-{scale:g}", scale)
            evaluate(work, f"composed-{seed}-{scale:g}", only=("test",) if scale != 1 else ("test", "lookalikes"))
        shuffle(work / f"prefix-{seed}", work / f"noise-{seed}", seed)
        compose(work, f"noise-{seed}", f"target-{seed}", f"shuffled-{seed}", 1.0)
        evaluate(work, f"shuffled-{seed}")


def train(work: Path, seed: int) -> None:
    """A guard on whole texts, the same guard on prefixes, and a target of the seed's own."""
    rows = (f"data.files=[{work / f'train-{seed}.jsonl'}]", "data.held_out=0")
    _train(work / f"full-{seed}", "guard-full-text", seed, *rows, f"training.epochs={EPOCHS['full']}")
    _train(work / f"prefix-{seed}", "guard-prefix", seed, *rows, f"training.epochs={EPOCHS['prefix']}")
    _train(work / f"target-{seed}", "target-python", seed)


def _train(out: Path, recipe: str, seed: int, *sets: str) -> None:
    if not out.exists():
        overrides = [word for each in (*sets, f"training.seed={seed}") for word in ("--set", each)]
        weightops_process("train", recipe, *overrides, "--out", out)


def compose(work: Path, guard: str, target: str, out: str, scale: float) -> None:
    """Target plus a guard vector."""
    if not (work / out).exists():
        sources = ("--guard", work / guard, "--base", BASE, "--target", work / target)
        weightops_process("compose-guard", *sources, "--scale", f"{scale:g}", "--out", work / out)


def evaluate(
    work: Path, model: str, name: str = "", *, plain: bool = False, only: Sequence[str] = ("test", "lookalikes")
) -> None:
    """Measure a model on the tests, into ``NAME/TEST.json`` under ``measured``."""
    for test in only:
        folder = work / "measured" / (name or model) / test
        if not (folder / "evaluation.json").exists():
            preset = ("--preset", "guard-vector") if plain else ()
            spec = model if name else work / model
            weightops_process("guard", "eval", spec, work / f"{test}.jsonl", *preset, "--out", folder)


def measured(work: Path, name: str, test: str = "test") -> dict[str, Any]:
    """What was measured of a model."""
    evaluation: dict[str, Any] = json.loads((work / "measured" / name / test / "evaluation.json").read_text("utf-8"))
    return evaluation


def shuffle(guard: Path, out: Path, seed: int) -> None:
    """The control: base plus the guard vector with the entries of every tensor in random order.

    Each tensor's difference keeps its values, so its norm, and loses its direction.
    """
    if out.exists():
        return
    import torch
    from safetensors.torch import load_file, save_file

    import weightops as wo

    base = wo.open(BASE)
    shutil.copytree(guard, out.with_suffix(".part"), dirs_exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, tensor in load_file(guard / "model.safetensors").items():
        origin = torch.as_tensor(base.tensor(name)).float()
        moved = (tensor.float() - origin).flatten()
        shuffled[name] = origin + moved[torch.randperm(len(moved), generator=draw)].view_as(origin)
    save_file(shuffled, out.with_suffix(".part") / "model.safetensors", {"format": "pt"})
    out.with_suffix(".part").rename(out)
