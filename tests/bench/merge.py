"""``weightops merge`` against mergekit, and against the least that any merge of three models has to do.

Each method is a piece of a few minutes: ``python -m tests.bench merge --methods ties,sce`` measures two of them and keeps
what it measured beside the models; the page is written from all pieces there are, and names the methods without one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .compose import Models, after_imports, cpu, least_work, onto, walls
from .measure import Run, Spread, conditions, interleaved, ratios, run, under_load
from .models import SHAPES, Shape, trio
from .report import Section, Table, Target, megabytes, seconds, times

NAME = "merge"
SIZES = ("0.5B",)

_OURS = Path(sys.executable).with_name("weightops")
_THEIRS = Path(sys.executable).with_name("mergekit-yaml")
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_MEMORY, _START = 450e6, 0.6
_RUNS = ("limit", "after", "whole", "start", "theirs")


@dataclass(frozen=True)
class Method:
    """A merge method as it is measured.

    Attributes:
        parameters: YAML of its parameters.
        of_limit: Target: wall after start-up, in limits.
        faster: Target: mergekit's wall over ours, whole processes; None if mergekit has no such method.
    """

    name: str
    parameters: str = "{}"
    base: bool = True
    models: int = 2
    of_limit: float = 2
    faster: float | None = 8

    def config(self, models: Models) -> str:
        """The merge file: guard and target on base, or all three alike."""
        merged = [models["guard"], models["target"], models["base"]]
        used = merged[: self.models] if self.base else merged[: max(self.models, 2)]
        listed = "\n".join(f"  - model: {folder}" for folder in used)
        base = f"base_model: {models['base']}\n" if self.base else ""
        return f"merge_method: {self.name}\n{base}models:\n{listed}\nparameters: {self.parameters}\ndtype: bfloat16\n"


METHODS = (
    Method("linear", "{weight: 1.0}", base=False, models=3),
    Method("task_arithmetic", "{weight: 0.5}"),
    Method("slerp", "{t: 0.5}", models=1),
    Method("nuslerp", "{weight: 0.5}", base=False),
    Method("model_stock", "{}"),
    Method("karcher", "{}", base=False),
    Method("ties", "{weight: 0.5, density: 0.5}", of_limit=5, faster=25),
    Method("dare_ties", "{weight: 0.5, density: 0.5}", of_limit=5, faster=25),
    Method("della", "{weight: 0.5, density: 0.5, epsilon: 0.1}", of_limit=5, faster=25),
    Method("breadcrumbs", "{weight: 0.5, density: 0.9, gamma: 0.01}", of_limit=5, faster=25),
    Method("sce", "{select_topk: 0.5}", of_limit=5, faster=25),
    Method("arcee_fusion", models=1, of_limit=5, faster=25),
    Method("multislerp", "{weight: 0.5}", of_limit=5, faster=25),
    Method("ram", of_limit=5, faster=25),
    Method("pcb", "{weight: 0.5}", of_limit=5, faster=None),
    Method("consensus", of_limit=5, faster=None),
)


@dataclass(frozen=True)
class Timed:
    """One method's runs at one size, repeat by repeat; mergekit's only once, or never if it has no such method.

    Attributes:
        start: Ours as a process on a model so small that only start-up takes time.
        conditions: Machine, load and versions while it was measured.
    """

    method: Method
    shape: Shape
    limit: list[Run]
    after: list[Run]
    whole: list[Run]
    start: list[Run]
    theirs: list[Run]
    conditions: tuple[str, ...]

    @property
    def of_limit(self) -> Spread:
        return ratios(self.after, self.limit)

    @property
    def faster(self) -> float | None:
        """mergekit's wall over ours, medians of whole processes; None if mergekit has no such method."""
        return walls(self.theirs).median / walls(self.whole).median if self.theirs else None


def bench(
    sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True, methods: Sequence[str] = ()
) -> Section:
    """Measure every method at every size. mergekit runs once a method: it takes minutes where we take seconds.

    Args:
        methods: Measure only these; the section holds them, and the others as they were measured before.
    """
    tiny = trio(SHAPES["2M"], place)
    chosen = [method for method in METHODS if not methods or method.name in methods]
    timed: list[Timed] = []
    with TemporaryDirectory(prefix="merges-", dir=place) as outputs:
        for size in sizes:
            models = trio(SHAPES[size], place)
            for method in chosen:
                _keep(_time(method, SHAPES[size], models, tiny, repeats, Path(outputs)), place)
            timed += [piece for method in METHODS if (piece := _kept(method, SHAPES[size], place))]
    return Section(
        name=NAME,
        title="weightops merge",
        conditions=(
            *_conditions(timed),
            "each method measured in one piece, interleaved with its limit; mergekit: one run each",
            *_not_measured(timed),
        ),
        targets=tuple(target for one in timed for target in _targets(one)),
        tables=(_table(timed),),
        figures={f"{one.shape.name}/{one.method.name}": _figures(one) for one in timed},
    )


def _conditions(timed: Sequence[Timed]) -> list[str]:
    """Under what the methods were measured; a condition that not all share names those that it holds for."""
    of: dict[str, list[str]] = {}
    for one in timed:
        for line in one.conditions:
            of.setdefault(line, []).append(one.method.name)
    return [line if len(names) == len(timed) else f"{line}: {', '.join(names)}" for line, names in of.items()]


def _not_measured(timed: Sequence[Timed]) -> list[str]:
    missing = [method.name for method in METHODS if method not in {one.method for one in timed}]
    return [f"not measured: {', '.join(missing)}"] if missing else []


def _piece(method: Method, shape: Shape, place: Path) -> Path:
    return place / f"merge-{shape.name}-{method.name}.json"


def _keep(timed: Timed, place: Path) -> None:
    runs = {key: [asdict(run) for run in getattr(timed, key)] for key in _RUNS}
    text = json.dumps(runs | {"conditions": timed.conditions, "parameters": timed.method.parameters})
    _piece(timed.method, timed.shape, place).write_text(text, "utf-8")


def _kept(method: Method, shape: Shape, place: Path) -> Timed | None:
    """What was measured of a method with these parameters, if anything."""
    file = _piece(method, shape, place)
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if known.get("parameters") != method.parameters:
        return None
    runs = {key: [Run(**values) for values in known[key]] for key in _RUNS}
    return Timed(method, shape, **runs, conditions=tuple(known["conditions"]))


def _time(method: Method, shape: Shape, models: Models, tiny: Models, repeats: int, outputs: Path) -> Timed:
    config, small = outputs / f"{method.name}.yml", outputs / "small.yml"
    config.write_text(method.config(models))
    small.write_text(method.config(tiny))
    out, copy, aside = outputs / "out", outputs / "copy", outputs / "small"
    child = ("merge", small, aside, "--overwrite", "--", config, out)
    steps = {
        "limit": onto(copy, partial(run, least_work(models, copy), sample=False)),
        "after": partial(after_imports, child),
        "whole": onto(out, partial(run, [_OURS, "merge", config, out])),
        "start": onto(aside, partial(run, [_OURS, "merge", small, aside])),
    }
    load = under_load()
    interleaved(steps, 1)
    runs = interleaved(steps, repeats)
    mergekit = [_THEIRS, config, out, "--no-copy-tokenizer", "--no-write-model-card"]
    theirs = [onto(out, partial(run, mergekit, env=_OFFLINE))()] if method.faster else []
    packages = ("numpy", "numba", "torch", "mergekit", "weightops")
    return Timed(method, shape, **runs, theirs=theirs, conditions=conditions(repeats, *packages, load=load))


def _targets(timed: Timed) -> Iterable[Target]:
    method, named = timed.method, f"{timed.method.name}, {timed.shape.name}"
    met = timed.of_limit.median <= method.of_limit
    yield Target(f"{named}: wall after start-up", f"{method.of_limit:g} x limit", times(timed.of_limit), met)
    if timed.faster and method.faster:
        met = timed.faster >= method.faster
        yield Target(f"{named}: faster than mergekit, at least", f"{method.faster:g} x", f"{timed.faster:.1f} x", met)
    started = walls(timed.start)
    yield Target(f"{named}: start-up", f"{_START} s", seconds(started), started.median <= _START)
    peak = max(run.anonymous for run in timed.whole)
    yield Target(f"{named}: peak anonymous memory", megabytes(_MEMORY), megabytes(peak), peak <= _MEMORY)


def _table(timed: Sequence[Timed]) -> Table:
    rows = tuple(
        (
            f"{one.shape.name}: {one.method.name}",
            seconds(walls(one.limit)),
            seconds(walls(one.after)),
            seconds(walls(one.whole)),
            seconds(walls(one.start)),
            f"{cpu(one.whole):.1f} s",
            megabytes(max(run.anonymous for run in one.whole)),
            *_of_mergekit(one.theirs),
        )
        for one in timed
    )
    head = (
        *("", "limit", "ours, after start-up", "ours, whole process", "start-up", "CPU", "anonymous"),
        *("mergekit, whole process", "CPU", "anonymous"),
    )
    note = "Limit: `cat` of three inputs and `cp` of one, page cache warm. Both write bf16 and compute with all cores."
    return Table("Time and memory", head, rows, note)


def _of_mergekit(runs: Sequence[Run]) -> tuple[str, str, str]:
    """mergekit's wall, processor time and memory; dashes if it has no such method."""
    if not runs:
        return "-", "-", "-"
    return f"{walls(runs).median:.1f} s", f"{cpu(runs):.1f} s", megabytes(max(run.anonymous for run in runs))


def _figures(timed: Timed) -> dict[str, Any]:
    return {
        key: [{"wall": one.wall, "cpu": one.cpu, "anonymous": one.anonymous} for one in getattr(timed, key)]
        for key in _RUNS
    }
