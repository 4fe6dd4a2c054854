"""``weightops adapters``: merges of adapters against merges of whole models, and extraction against mergekit's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import save_file

from .compose import after_imports, cpu, onto, walls
from .measure import Run, conditions, interleaved, ratios, run
from .models import SHAPES, Shape, trio
from .report import Section, Table, Target, megabytes, seconds, times

NAME = "adapters"
SIZES = ("0.5B",)

_OURS = Path(sys.executable).with_name("weightops")
_CANDIDATES = Path(__file__).with_name("candidate_child.py")
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_ADAPTERS, _DENSE, _RANK = 8, 4, 16
_TUNED_RANK = 64
_MEMORY = 450e6  # the bound of the merges of whole models
_EVERY = 8  # of the layers' matrices, one in so many is compared with the adapters taken out


@dataclass(frozen=True)
class Inputs:
    """What is merged and extracted from, of one size.

    Attributes:
        adapters: Eight of rank 16 on every matrix of the layers; their singular values fall as 1 / sqrt(k).
        dense: Four whole models, each the base with one of the adapters.
        tuned: The base with a change of rank 64 whose singular values fall so too, and noise.
    """

    shape: Shape
    base: Path
    adapters: tuple[Path, ...]
    dense: tuple[Path, ...]
    tuned: Path

    @classmethod
    def made(cls, shape: Shape, place: Path, folder: Path) -> Inputs:
        """Made in a folder, the base beside it."""
        models = trio(shape, place)
        adapters = tuple(_adapter(shape, models["base"], folder / f"a{n}", n, _RANK) for n in range(_ADAPTERS))
        change = _adapter(shape, models["base"], folder / "change", _ADAPTERS, _TUNED_RANK)
        whole = [(models["base"], adapter) for adapter in adapters[:_DENSE]] + [(models["target"], change)]
        written = [folder / f"m{n}" for n in range(len(whole))]
        for (model, adapter), out in zip(whole, written, strict=True):
            config = folder / "one.yml"
            config.write_text(
                f"merge_method: linear\nmodels: [{{model: {model}+{adapter}, parameters: {{weight: 1}}}}]\n"
            )
            run([_OURS, "merge", config, out], sample=False)
        return cls(shape, models["base"], adapters, tuple(written[:_DENSE]), written[_DENSE])


@dataclass(frozen=True)
class Timed:
    """The runs of one size: merges after their imports, repeat by repeat; extractions once, whole processes.

    Attributes:
        candidates: Seconds of a candidate ``in place`` and ``reloaded``, repeat by repeat.
        kept: Share of the change that our extraction holds.
        kept_by_theirs: And mergekit's.
    """

    shape: Shape
    merges: Mapping[str, list[Run]]
    candidates: Mapping[str, list[Run]]
    extract: Run
    theirs: Run
    kept: float
    kept_by_theirs: float


def bench(sizes: Sequence[str], repeats: int, place: Path, *, first: bool = True) -> Section:
    """Measure at every size. Extractions run once, because mergekit's takes minutes."""
    timed = []
    for size in sizes:
        with TemporaryDirectory(prefix="adapters-", dir=place) as folder:
            timed.append(_time(SHAPES[size], repeats, place, Path(folder)))
    return Section(
        name=NAME,
        title="weightops adapters",
        conditions=(
            *conditions(repeats, "numpy", "numba", "torch", "mergekit", "weightops"),
            "extractions: one run each",
        ),
        targets=tuple(target for one in timed for target in _targets(one)),
        tables=(_table(timed),),
        figures={one.shape.name: _figures(one) for one in timed},
    )


def _time(shape: Shape, repeats: int, place: Path, folder: Path) -> Timed:
    (folder / "tiny").mkdir()
    tiny, inputs = Inputs.made(SHAPES["2M"], place, folder / "tiny"), Inputs.made(shape, place, folder)
    merges = _merges(inputs, tiny, folder)
    interleaved(merges, 1)
    timed = interleaved(merges, repeats)
    candidates = _candidates(inputs, repeats, folder / "candidate")
    ours, theirs = folder / "ours", folder / "theirs"
    extract = [_OURS, "adapters", "extract", inputs.base, inputs.tuned, "--rank", str(_RANK), "--out", ours]
    mergekit = [
        *(sys.executable, "-m", "mergekit.scripts.extract_lora", "--base-model", inputs.base, "--model", inputs.tuned),
        *("--out-path", theirs, "--max-rank", str(_RANK), "--skip-undecomposable", "-i", "proj"),
    ]
    return Timed(
        shape, timed, candidates, run(extract), run(mergekit, env=_OFFLINE), _kept(inputs, ours), _kept(inputs, theirs)
    )  # fmt: skip


def _candidates(inputs: Inputs, repeats: int, out: Path) -> dict[str, list[Run]]:
    """A candidate of a search in place, and written and loaded again; both in one process, which is loaded once."""
    done = run([sys.executable, "-P", _CANDIDATES, str(repeats), inputs.base, *inputs.dense[:2], out])
    times = json.loads(done.output.splitlines()[-1])
    return {name: [Run(wall, 0, done.anonymous) for wall in walls_] for name, walls_ in times.items()}


def _merges(inputs: Inputs, tiny: Inputs, folder: Path) -> dict[str, Callable[[], Run]]:
    """The four merges, each after a small one of its kind, which loads what is loaded late."""

    def of_models(name: str, config: Callable[[Inputs], str]) -> Callable[[], Run]:
        small, large, out = folder / f"{name}-tiny.yml", folder / f"{name}.yml", folder / f"{name}-out"
        small.write_text(config(tiny))
        large.write_text(config(inputs))
        child = ("merge", small, folder / "small", "--overwrite", "--", large, out)
        return onto(out, partial(after_imports, child))

    def words(of: Inputs, out: Path) -> list[str | Path]:
        return ["merge", *of.adapters, "--method", "ties", "--set", "density=0.5", "--out", out]

    core = folder / "core-out"
    child = ("adapters", *words(tiny, folder / "small"), "--overwrite", "--", *words(inputs, core))
    return {
        "four adapters into the model": of_models("lora", lambda of: _arithmetic(of, _with_adapters(of))),
        "four models, task_arithmetic": of_models("dense", lambda of: _arithmetic(of, of.dense)),
        "eight adapters into one, TIES": onto(core, partial(after_imports, child)),
        "four models, TIES": of_models("ties", lambda of: _file("ties", of, of.dense, "{weight: 1, density: 0.5}")),
    }


def _with_adapters(inputs: Inputs) -> list[str]:
    return [f"{inputs.base}+{adapter}" for adapter in inputs.adapters[:_DENSE]]


def _arithmetic(inputs: Inputs, models: Sequence[object]) -> str:
    return _file("task_arithmetic", inputs, models, "{weight: 0.25}")


def _file(method: str, inputs: Inputs, models: Sequence[object], parameters: str) -> str:
    listed = "\n".join(f"  - model: {model}" for model in models)
    return f"merge_method: {method}\nbase_model: {inputs.base}\nmodels:\n{listed}\nparameters: {parameters}\ndtype: bfloat16\n"


def _targets(timed: Timed) -> Iterator[Target]:
    size, (lora, dense, core, ties) = timed.shape.name, timed.merges.values()
    into, one = ratios(lora, dense), ratios(core, ties)
    peak, faster = max(each.anonymous for each in lora), timed.theirs.wall / timed.extract.wall
    kept = timed.kept / timed.kept_by_theirs
    yield Target(
        f"{size}: {_DENSE} adapters into the model, of {_DENSE} models", "1.3 x", times(into), into.median <= 1.3
    )
    yield Target(f"{size}: the same, peak anonymous memory", megabytes(_MEMORY), megabytes(peak), peak <= _MEMORY)
    yield Target(f"{size}: TIES of {_ADAPTERS} adapters, of {_DENSE} models", "0.1 x", times(one), one.median <= 0.1)
    cheaper = ratios(timed.candidates["reloaded"], timed.candidates["in place"])
    what = f"{size}: a candidate in place cheaper than written and reloaded, at least"
    yield Target(what, "10 x", times(cheaper), cheaper.median >= 10)
    yield Target(f"{size}: extraction faster than mergekit's, at least", "5 x", f"{faster:.1f} x", faster >= 5)
    yield Target(f"{size}: energy it keeps, of mergekit's, at least", "0.99 x", f"{kept:.4f} x", kept >= 0.99)


def _table(timed: Sequence[Timed]) -> Table:
    rows = []
    for one in timed:
        extractions = {f"extraction, keeps {one.kept:.2%}": [one.extract],
                       f"mergekit's extraction, keeps {one.kept_by_theirs:.2%}": [one.theirs]}  # fmt: skip
        for name, runs in {**one.merges, **extractions}.items():
            peak = megabytes(max(each.anonymous for each in runs))
            rows.append((f"{one.shape.name}: {name}", seconds(walls(runs)), f"{cpu(runs):.1f} s", peak))
        for name, runs in one.candidates.items():
            peak = megabytes(runs[0].anonymous)
            rows.append((f"{one.shape.name}: a candidate, {name}", seconds(walls(runs)), "", peak))
    note = (
        f"Merges after their imports; extractions of rank {_RANK}, from every matrix of the layers, whole processes. "
        "Adapters have rank 16. Kept: share of the change's squared norm, over one in eight of those matrices. A "
        "candidate: the base with two models' changes, without the forward pass; both ways in one process."
    )
    return Table("Time and memory", ("", "wall", "CPU, median", "anonymous"), tuple(rows), note)


def _figures(timed: Timed) -> dict[str, object]:
    runs = {**timed.merges, "extraction": [timed.extract], "mergekit's extraction": [timed.theirs]}
    figures = {n: [{"wall": r.wall, "cpu": r.cpu, "anonymous": r.anonymous} for r in each] for n, each in runs.items()}
    figures |= {f"candidate, {name}": [{"wall": r.wall} for r in each] for name, each in timed.candidates.items()}
    return {**figures, "kept": timed.kept, "kept by mergekit": timed.kept_by_theirs}


def _kept(inputs: Inputs, adapter: Path) -> float:
    """The share of the change's squared norm that an adapter holds, over some of the layers' matrices."""
    import weightops as wo

    base, tuned, held = wo.open(inputs.base), wo.open(inputs.tuned), wo.open_adapter(adapter)
    change = left = 0.0
    for name in _matrices(inputs.shape)[::_EVERY]:
        difference = tuned.tensor(name).float() - base.tensor(name).float()
        change += float(difference.square().sum())
        left += float((difference - held.tensor(name)).square().sum())
    return 1 - left / change


def _matrices(shape: Shape) -> list[str]:
    return [name for name, size in shape.tensors.items() if len(size) == 2 and "layers" in name]


def _adapter(shape: Shape, base: Path, folder: Path, seed: int, rank: int) -> Path:
    """A random adapter on every matrix of the layers, about as large as what training changes."""
    draw, factors = np.random.default_rng(seed), {}
    falling = np.arange(1, rank + 1, dtype=np.float32) ** -0.5
    for name in _matrices(shape):
        rows, columns = shape.tensors[name]
        at = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{at}.lora_A.weight"] = draw.standard_normal((rank, columns), np.float32) / np.float32(columns**0.5)
        factors[f"{at}.lora_B.weight"] = (
            2 * falling * draw.standard_normal((rows, rank), np.float32) / np.float32(rows**0.5)
        )
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
