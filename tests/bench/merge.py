"""``weightops merge`` against mergekit, and against the least that any merge of three models has to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .compose import Models, after_imports, cpu, least_work, onto, walls
from .measure import Run, Spread, conditions, interleaved, ratios, run
from .models import SHAPES, Shape, trio
from .report import Section, Table, Target, megabytes, seconds, times

NAME = "merge"
SIZES = ("0.5B",)

_OURS = Path(sys.executable).with_name("weightops")
_THEIRS = Path(sys.executable).with_name("mergekit-yaml")
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_MEMORY = 450e6


@dataclass(frozen=True)
class Method:
    """A merge method as it is measured.

    Attributes:
        parameters: YAML of its parameters.
        of_limit: Target: wall after imports, in limits; ``None``: none is set.
        faster: Target: mergekit's wall over ours, whole processes.
    """

    name: str
    parameters: str = "{}"
    base: bool = True
    models: int = 2
    of_limit: float | None = None
    faster: float = 6

    def config(self, models: Models) -> str:
        """The merge file: guard and target on base, or all three alike."""
        merged = [models["guard"], models["target"], models["base"]]
        used = merged[: self.models] if self.base else merged[: max(self.models, 2)]
        listed = "\n".join(f"  - model: {folder}" for folder in used)
        base = f"base_model: {models['base']}\n" if self.base else ""
        return f"merge_method: {self.name}\n{base}models:\n{listed}\nparameters: {self.parameters}\ndtype: bfloat16\n"


METHODS = (
    Method("linear", "{weight: 1.0}", base=False, models=3, of_limit=2.5, faster=6),
    Method("task_arithmetic", "{weight: 0.5}", of_limit=2.5, faster=6),
    Method("ties", "{weight: 0.5, density: 0.5}", of_limit=6, faster=25),
    Method("dare_ties", "{weight: 0.5, density: 0.5}", of_limit=6, faster=25),
    Method("della", "{weight: 0.5, density: 0.5, epsilon: 0.1}", of_limit=6, faster=25),
    Method("breadcrumbs", "{weight: 0.5, density: 0.9, gamma: 0.01}", of_limit=6, faster=25),
    Method("sce", "{select_topk: 0.5}", of_limit=6, faster=25),
    Method("slerp", "{t: 0.5}", models=1),
    Method("nuslerp", "{weight: 0.5}", base=False),
    Method("model_stock", "{}"),
    Method("karcher", "{}", base=False),
)


@dataclass(frozen=True)
class Timed:
    """One method's runs at one size, repeat by repeat; mergekit's only once where ``theirs`` has one."""

    method: Method
    shape: Shape
    limit: list[Run]
    after: list[Run]
    whole: list[Run]
    theirs: list[Run]

    @property
    def of_limit(self) -> Spread:
        return ratios(self.after, self.limit)

    @property
    def faster(self) -> float:
        """mergekit's wall over ours, medians of whole processes."""
        return walls(self.theirs).median / walls(self.whole).median


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure every method at every size. mergekit runs once a method: it takes minutes where we take seconds."""
    tiny = trio(SHAPES["2M"], place)
    timed: list[Timed] = []
    with TemporaryDirectory(prefix="merges-", dir=place) as outputs:
        for size in sizes:
            models = trio(SHAPES[size], place)
            timed += [_time(method, SHAPES[size], models, tiny, repeats, Path(outputs)) for method in METHODS]
    return Section(
        name=NAME,
        title="weightops merge",
        conditions=(*conditions(repeats, "numpy", "numba", "torch", "mergekit", "weightops"), "mergekit: one run each"),
        targets=tuple(target for one in timed for target in _targets(one)),
        tables=(_table(timed),),
        figures={f"{one.shape.name}/{one.method.name}": _figures(one) for one in timed},
    )


def _time(method: Method, shape: Shape, models: Models, tiny: Models, repeats: int, outputs: Path) -> Timed:
    config, small = outputs / f"{method.name}.yml", outputs / "small.yml"
    config.write_text(method.config(models))
    small.write_text(method.config(tiny))
    out, copy, aside = outputs / "out", outputs / "copy", outputs / "small"
    child = ("merge", small, aside, "--overwrite", "--", config, out)
    steps = {
        "limit": onto(copy, partial(run, least_work(models, copy), sample=False)),
        "after": onto(out, partial(after_imports, child)),
        "whole": onto(out, partial(run, [_OURS, "merge", config, out])),
    }
    interleaved(steps, 1)
    mergekit = [_THEIRS, config, out, "--no-copy-tokenizer", "--no-write-model-card"]
    return Timed(
        method, shape, **interleaved(steps, repeats), theirs=[onto(out, partial(run, mergekit, env=_OFFLINE))()]
    )


def _targets(timed: Timed) -> Iterable[Target]:
    method, named = timed.method, f"{timed.method.name}, {timed.shape.name}"
    if method.of_limit is not None:
        met = timed.of_limit.median <= method.of_limit
        yield Target(f"{named}: wall after imports", f"{method.of_limit:g} x limit", times(timed.of_limit), met)
    met = timed.faster >= method.faster
    yield Target(f"{named}: faster than mergekit, at least", f"{method.faster:g} x", f"{timed.faster:.1f} x", met)
    peak = max(run.anonymous for run in timed.whole)
    yield Target(f"{named}: peak anonymous memory", megabytes(_MEMORY), megabytes(peak), peak <= _MEMORY)


def _table(timed: Sequence[Timed]) -> Table:
    rows = tuple(
        (
            f"{one.shape.name}: {one.method.name}",
            seconds(walls(one.limit)),
            seconds(walls(one.after)),
            seconds(walls(one.whole)),
            f"{cpu(one.whole):.1f} s",
            megabytes(max(run.anonymous for run in one.whole)),
            f"{walls(one.theirs).median:.1f} s",
            f"{cpu(one.theirs):.1f} s",
            megabytes(max(run.anonymous for run in one.theirs)),
        )
        for one in timed
    )
    head = (
        *("", "limit", "ours, after imports", "ours, whole process", "CPU", "anonymous"),
        *("mergekit, whole process", "CPU", "anonymous"),
    )
    note = "Limit: `cat` of three inputs and `cp` of one, page cache warm. Both write bf16 and compute with all cores."
    return Table("Time and memory", head, rows, note)


def _figures(timed: Timed) -> dict[str, Any]:
    return {
        key: [{"wall": one.wall, "cpu": one.cpu, "anonymous": one.anonymous} for one in getattr(timed, key)]
        for key in ("limit", "after", "whole", "theirs")
    }
