"""``weightops extract`` against ``cp`` of the bytes that it writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from .compose import after_imports, onto, walls, weights_of
from .measure import conditions, interleaved, ratios, run, under_load
from .models import SHAPES, trio
from .report import Section, Table, Target, seconds, times

NAME = "extract"
SIZES = ("0.5B",)

_OURS = Path(sys.executable).with_name("weightops")
_LAYERS, _TARGET = 18, 1.3


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Cut the first layers of a model, and copy what was written, in turn."""
    tiny = trio(SHAPES["2M"], place)["base"]
    timed, load = {}, under_load()
    with TemporaryDirectory(prefix="cuts-", dir=place) as outputs:
        out, copy, aside, written = (Path(outputs) / name for name in ("out", "copy", "small", "written"))
        for size in sizes:
            model = trio(SHAPES[size], place)["base"]
            cut = ("--layers", str(_LAYERS), "--out")
            run([_OURS, "extract", model, *cut, written])
            child = ("extract", tiny, "--layers", "1", "--out", aside, "--overwrite", "--", model, *cut, out)
            steps = {
                "cp": onto(copy, partial(run, ["cp", weights_of(written), copy], sample=False)),
                "after": partial(after_imports, child),
            }
            interleaved(steps, 1)
            timed[size] = interleaved(steps, repeats)
    slower = {size: ratios(runs["after"], runs["cp"]) for size, runs in timed.items()}
    return Section(
        name=NAME,
        title="weightops extract",
        conditions=conditions(repeats, "numpy", "numba", "weightops", load=load),
        targets=tuple(
            Target(f"{size}: wall after start-up", f"{_TARGET} x cp", times(ratio), ratio.median <= _TARGET)
            for size, ratio in slower.items()
        ),
        tables=(
            Table(
                f"{_LAYERS} layers",
                ("", "cp of the bytes written", "ours, after start-up"),
                tuple(
                    (size, seconds(walls(runs["cp"])), seconds(walls(runs["after"]))) for size, runs in timed.items()
                ),
                "`cp` of the weights that were written, page cache warm. Ours also digests every byte (BLAKE3), flushes to the "
                "disk, and writes configuration, tokenizer, card and record.",
            ),
        ),
        figures={size: {kind: [one.wall for one in runs[kind]] for kind in runs} for size, runs in timed.items()},
    )
