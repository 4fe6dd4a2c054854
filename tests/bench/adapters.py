"""``weightops adapters``: a merge in Core Space against one of dense models, and extraction against mergekit's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

from .compose import onto, walls
from .measure import conditions, interleaved, run
from .models import SHAPES, Shape, trio
from .report import Section, Table, Target, megabytes, seconds

NAME = "adapters"
SIZES = ("0.5B",)

_BIN = Path(sys.executable).parent
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_ADAPTERS, _RANK, _DENSE = 8, 16, 4


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure at every size; mergekit's extraction runs once, because it takes minutes."""
    rows, targets, figures = [], [], {}
    for size in sizes:
        models = trio(SHAPES[size], place)
        with TemporaryDirectory(prefix="adapters-", dir=place) as folder:
            outputs = Path(folder)
            adapters = [_adapter(SHAPES[size], models["base"], outputs / f"a{n}", n) for n in range(_ADAPTERS)]
            out, config = outputs / "out", outputs / "ties.yml"
            config.write_text(_dense(models, adapters[:_DENSE]))
            ties = ["--method", "ties", "--set", "density=0.5"]
            pair = [models["base"], models["target"]]
            steps = {
                "merge": onto(
                    out, partial(run, [_BIN / "weightops", "adapters", "merge", *adapters, *ties, "--out", out])
                ),
                "dense": onto(out, partial(run, [_BIN / "weightops", "merge", config, out])),
                "extract": onto(
                    out,
                    partial(
                        run, [_BIN / "weightops", "adapters", "extract", *pair, "--rank", str(_RANK), "--out", out]
                    ),
                ),
            }
            interleaved(steps, 1)
            timed = interleaved(steps, repeats)
            named = ["--base-model", models["base"], "--model", models["target"], "--out-path", out]
            mergekit = [
                sys.executable,
                "-m",
                "mergekit.scripts.extract_lora",
                *named,
                "--max-rank",
                str(_RANK),
                "--skip-undecomposable",
            ]
            timed["mergekit"] = [onto(out, partial(run, [*mergekit, "-i", "proj"], env=_OFFLINE))()]
        share = walls(timed["merge"]).median / walls(timed["dense"]).median
        faster = walls(timed["mergekit"]).median / walls(timed["extract"]).median
        targets += [
            Target(
                f"{size}: TIES of {_ADAPTERS} adapters of {_DENSE} dense models'",
                "0.1 x",
                f"{share:.2f} x",
                share <= 0.1,
            ),
            Target(f"{size}: extraction faster than mergekit's, at least", "5 x", f"{faster:.1f} x", faster >= 5),
        ]
        for key, runs in timed.items():
            rows.append((f"{size}: {key}", seconds(walls(runs)), megabytes(max(each.anonymous for each in runs))))
            figures[f"{size}/{key}"] = [{"wall": each.wall, "cpu": each.cpu} for each in runs]
    return Section(
        name=NAME,
        title="weightops adapters",
        conditions=(*conditions(repeats, "torch", "mergekit", "weightops"), "mergekit: one run"),
        targets=tuple(targets),
        tables=(Table("Time and memory", ("", "whole process", "anonymous"), tuple(rows), _NOTE),),
        figures=figures,
    )


_NOTE = (
    f"merge: TIES of {_ADAPTERS} adapters of rank {_RANK} in Core Space; dense: TIES of {_DENSE} dense models, each the "
    f"base with an adapter; extract and mergekit: rank {_RANK} of every layer's matrices."
)


def _adapter(shape: Shape, base: Path, folder: Path, seed: int) -> Path:
    """A random adapter on every matrix of the layers."""
    draw, factors = np.random.default_rng(seed), {}
    for name, size in shape.tensors.items():
        if len(size) == 2 and "layers" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{at}.lora_A.weight"] = draw.standard_normal((_RANK, size[1]), np.float32)
            factors[f"{at}.lora_B.weight"] = 1e-3 * draw.standard_normal((size[0], _RANK), np.float32)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _dense(models: dict[str, Path], adapters: Sequence[Path]) -> str:
    """The same merge of models: mergekit's file with an adapter on each model."""
    listed = "\n".join(f"  - model: {models['base']}+{adapter}" for adapter in adapters)
    return (
        f"merge_method: ties\nbase_model: {models['base']}\nmodels:\n{listed}\n"
        "parameters: {weight: 1.0, density: 0.5}\ndtype: bfloat16\n"
    )
