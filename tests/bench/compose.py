"""``weightops compose-guard`` against the least that any such program has to do: read three models, write one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .measure import Run, Spread, conditions, interleaved, ratios, run
from .models import SHAPES, Shape, trio, weights_of
from .report import Section, Table, Target, megabytes, seconds, times

NAME = "compose"
SIZES = ("0.1B", "0.5B", "1.5B")

Models = dict[str, Path]

_COMMAND = Path(sys.executable).with_name("weightops")
_CHILD = (sys.executable, "-P", Path(__file__).with_name("child.py"))
_LIMIT = 'copy=$1; shift; cat "$@" > /dev/null && cp "$1" "$copy"'
_WALL, _START, _MEMORY, _GROWTH = 2.5, 1.5, 400e6, 1.1


@dataclass(frozen=True)
class Timed:
    """One size's runs, repeat by repeat.

    Attributes:
        limit: ``cat`` of the three weight files and ``cp`` of one.
        synced: The same, and ``sync`` of the copy: what it takes to be sure that it is on the disk, as ours is.
        after: compose-guard in a process that has imported everything and loaded the kernels.
        whole: compose-guard as a process.
    """

    shape: Shape
    limit: list[Run]
    synced: list[Run]
    after: list[Run]
    whole: list[Run]

    @cached_property
    def ratio(self) -> Spread:
        return ratios(self.after, self.limit)

    @property
    def anonymous(self) -> int:
        """The highest peak of any run."""
        return max(run.anonymous for run in self.whole)


@dataclass(frozen=True)
class Started:
    """What does not depend on the model's size: runs on a model of 2M parameters, or on none."""

    help: list[Run]
    imports: list[Run]
    whole: list[Run]
    first: list[Run]


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure start-up, then every size.

    Args:
        sizes: Names in :data:`~models.SHAPES`.
        first: Measure also the first run of all, which compiles the kernels.
    """
    tiny = trio(SHAPES["2M"], place)
    models = {size: trio(SHAPES[size], place) for size in sizes}
    with TemporaryDirectory(prefix="outputs-", dir=place) as outputs:
        started = _start(tiny, repeats, Path(outputs), first=first)
        timed = [_time(SHAPES[size], models[size], tiny, repeats, Path(outputs)) for size in sizes]
    return Section(
        name=NAME,
        title="weightops compose-guard",
        conditions=conditions(repeats, "numpy", "numba", "blake3", "weightops"),
        targets=tuple(_targets(started, timed)),
        tables=(_start_table(started), _time_table(timed), _memory_table(timed)),
        figures=_figures(started, timed),
    )


def _start(tiny: Models, repeats: int, outputs: Path, *, first: bool) -> Started:
    out = outputs / "started"
    whole = [_COMMAND, "compose-guard", *_arguments(tiny, out)]
    run([*whole, "--overwrite"])  # compiles the kernels if this is a fresh checkout
    steps = {
        "help": lambda: run([_COMMAND, "--help"]),
        "imports": lambda: run([*_CHILD, "compose-guard"]),
        "whole": onto(out, lambda: run(whole)),
    }
    runs = interleaved(steps, repeats)
    return Started(**runs, first=[_compile(whole, out)] if first else [])


def _compile(whole: Sequence[str | Path], out: Path) -> Run:
    """The first run on a machine: an empty cache of kernels."""
    with TemporaryDirectory(dir=out.parent) as cache:
        return onto(out, lambda: run(whole, env={"NUMBA_CACHE_DIR": cache}))()


def _time(shape: Shape, models: Models, tiny: Models, repeats: int, outputs: Path) -> Timed:
    out, copy, small = outputs / "out", outputs / "copy", outputs / "small"
    limit = least_work(models, copy)
    synced = [*limit[:2], _LIMIT + ' && sync "$copy"', *limit[3:]]
    mine = _arguments(models, out)
    steps = {
        "limit": onto(copy, lambda: run(limit, sample=False)),
        "synced": onto(copy, lambda: run(synced, sample=False)),
        "after": lambda: after_imports(["compose-guard", *_arguments(tiny, small), "--overwrite", "--", *mine]),
        "whole": onto(out, lambda: run([_COMMAND, "compose-guard", *mine])),
    }
    interleaved(steps, 1)  # warms the page cache, and leaves outputs whose memory the next writer takes over
    return Timed(shape, **interleaved(steps, repeats))


def least_work(models: Models, copy: Path) -> list[str | Path]:
    """The limit: read the models' weights and write one of them to ``copy``."""
    return ["sh", "-c", _LIMIT, "sh", copy, *map(weights_of, models.values())]


def after_imports(words: Sequence[str | Path]) -> Run:
    """A run of the child: its times are those that it took itself, after the imports."""
    measured = run([*_CHILD, *words])
    took = json.loads(measured.output.splitlines()[-1])
    return replace(measured, wall=took["wall"], cpu=took["cpu"])


def onto(output: Path, step: Callable[[], Run]) -> Callable[[], Run]:
    """The step, onto a free place: what an earlier one wrote is removed outside of the measured time."""

    def fresh() -> Run:
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        return step()

    return fresh


def _arguments(models: Models, out: Path) -> list[str | Path]:
    named = [(f"--{role}", folder) for role, folder in models.items()]
    return [*(word for pair in named for word in pair), "--out", out]


def _targets(started: Started, timed: Iterable[Timed]) -> Iterable[Target]:
    by_size = {t.shape.name: t for t in timed}
    start = Spread.of([run.wall for run in started.whole])
    if half := by_size.get("0.5B"):
        yield Target("wall, 0.5B, after start-up", f"{_WALL} x limit", times(half.ratio), half.ratio.median <= _WALL)
    yield Target("start-up, kernels cached", f"{_START} s", seconds(start), start.median <= _START)
    peak = max((t.anonymous for t in by_size.values()), default=0)
    if peak:
        yield Target("peak anonymous memory, whole process", megabytes(_MEMORY), megabytes(peak), peak <= _MEMORY)
    if {"0.1B", "1.5B"} <= by_size.keys():
        growth = by_size["1.5B"].anonymous / by_size["0.1B"].anonymous
        yield Target("the same, 1.5B over 0.1B", f"{_GROWTH} x", f"{growth:.2f} x", growth <= _GROWTH)


def _start_table(started: Started) -> Table:
    rows = {
        "`weightops --help`": started.help,
        "imports of compose-guard": started.imports,
        "compose-guard on 2M parameters": started.whole,
        "the same, first run: kernels are compiled": started.first,
    }
    return Table(
        "Start-up",
        ("whole process", "wall", "CPU, median", "peak anonymous"),
        tuple(
            (what, seconds(walls(runs)), f"{cpu(runs):.2f} s", megabytes(max(run.anonymous for run in runs)))
            for what, runs in rows.items()
            if runs
        ),
        "Start-up is the whole process on a model so small that nothing else takes time: imports, and loading the "
        "compiled kernels, with what numba imports for that.",
    )


def _time_table(timed: Sequence[Timed]) -> Table:
    rows = []
    for t in timed:
        for what, runs in (
            ("limit: `cat` three, `cp` one", t.limit),
            ("limit, and `sync` of the copy", t.synced),
            ("compose-guard, after start-up", t.after),
            ("compose-guard, whole process", t.whole),
        ):
            against = [times(ratios(runs, limits)) for limits in (t.limit, t.synced)]
            rows.append((f"{t.shape.name}: {what}", seconds(walls(runs)), f"{cpu(runs):.2f} s", *against))
    return Table(
        "Time",
        ("", "wall", "CPU, median", "of the limit", "of the limit with `sync`"),
        tuple(rows),
        "Page cache warm, default options (so every input and output byte is hashed, and the output is on the disk "
        "when the command ends: the limit with `sync` does that too, the limit does not).",
    )


def _memory_table(timed: Sequence[Timed]) -> Table:
    rows = tuple(
        (
            t.shape.name,
            f"{t.shape.parameters:,}",
            megabytes(t.shape.nbytes),
            megabytes(Spread.of([run.anonymous for run in t.whole]).median),
            megabytes(t.anonymous),
            megabytes(max(run.resident for run in t.whole)),
        )
        for t in timed
    )
    head = ("", "parameters", "of weights each", "anonymous, median", "anonymous, greatest", "resident, greatest")
    return Table("Peak memory of the whole process", head, rows, "Anonymous: RssAnon, sampled every 10 ms.")


def _figures(started: Started, timed: Sequence[Timed]) -> dict[str, Any]:
    def of(runs: Sequence[Run]) -> dict[str, list[float]]:
        return {key: [getattr(run, key) for run in runs] for key in ("wall", "cpu", "anonymous", "resident")}

    return {
        "start": {key: of(runs) for key, runs in vars(started).items()},
        "sizes": {
            t.shape.name: {key: of(getattr(t, key)) for key in ("limit", "synced", "after", "whole")} for t in timed
        },
    }


def walls(runs: Sequence[Run]) -> Spread:
    """Seconds of wall."""
    return Spread.of([run.wall for run in runs])


def cpu(runs: Sequence[Run]) -> float:
    """Median of the seconds of processor time."""
    return Spread.of([run.cpu for run in runs]).median
