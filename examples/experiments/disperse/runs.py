"""The runs: what is trained and merged, by the commands that a user would run, each printed as it can be typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import weightops as wo
from examples.experiments.steps import read_lines, weightops, write_lines
from weightops.algebra.checkpoint import Delta

from . import rows
from .measuring import PatchedModel

BASE = "smollm2-135m-instruct"
PARTS = 4
DENSITY = 0.5
"""Of TIES, Core-TIES and DARE."""
TRAINING = ("training.lr=1e-3", "training.batch=4")
"""Where the runs depart from the shipped recipe disperse-then-merge: they have few and small steps."""
STOPPED = "checkpoint-8"
"""After about a quarter of the 30 steps."""
AVERAGED = 6
"""Last checkpoints, two steps apart, that stand for a decay."""
PATH = (0.25, 0.5, 0.75)
"""Shares of the single run's change that are measured."""
MERGES: Mapping[str, Mapping[str, Any]] = {
    "ties": {"merge_method": "ties", "parameters": {"normalize": True}},
    "dare_linear": {"merge_method": "dare_linear"},
    "dare_ties": {"merge_method": "dare_ties"},
}


def run(data: Path, work: Path, seeds: Sequence[int], embed: str) -> None:
    """Everything, the main comparison of all seeds before the extras. What is in the results is not done again."""
    patched = PatchedModel(data, work, BASE)
    if 0 in seeds:
        patched.measure(0, "base", Delta())
    for stage in (_main, _path, _merges, _kmeans, _checkpoints, _conflict):
        for seed in seeds:
            stage(_Seed(data, work, seed, embed), patched)


def gather(data: Path, work: Path, seeds: Sequence[int], file: Path) -> None:
    """Write what the page shows: how much was trained on and measured with, and every measurement."""
    reports = [_Seed(data, work, seed, "").report("random") for seed in seeds]
    tokens = PatchedModel(data, work, BASE).answer_tokens()
    sets = [
        {"name": "train", "rows": len(rows.SOURCES) * rows.TRAIN,
         "answer tokens": [sum(part["tokens"] for part in report["parts"]) for report in reports]},
        {"name": "task", "rows": len(rows.SOURCES) * rows.TEST, "answer tokens": [tokens["task"]]},
        {"name": "choice", "rows": len(rows.SOURCES) * rows.CHOICE, "answer tokens": [tokens["choice"]]},
        *({"name": name, "rows": rows.COUNTS[name], "answer tokens": [tokens[name]]} for name in rows.REST),
    ]  # fmt: skip
    measured = sorted(read_lines(work / "results.jsonl"), key=lambda line: (line["name"], line["seed"]))
    lines = ",\n".join(f"  {json.dumps(line)}" for line in measured)
    file.write_text(f'{{"sets": {json.dumps(sets)},\n"measured": [\n{lines}\n]}}\n', "utf-8")


class _Seed:
    """The folders of a seed, made when they are asked for."""

    def __init__(self, data: Path, work: Path, seed: int, embed: str) -> None:
        self.folder, self.seed, self.embed = work / f"seed-{seed}", seed, embed
        self.rows = self.folder / "rows.jsonl"
        if not self.rows.exists():
            write_lines(rows.train(data, seed), self.rows)

    def single(self, name: str = "single", *sets: str) -> Path:
        """One run on all rows: the shipped recipe's settings, without dispersing."""
        update = ("kind: lora", "rank: 16", "alpha: 16", "dropout: 0.05", "targets: [gate_proj, up_proj, down_proj]")
        recipe = ("training.epochs=1", "training.schedule=cosine", "training.clip=0.3", "training.checkpoint_every=2",
                  "training.keep_checkpoints=true")  # fmt: skip
        return self._train(name, "sft-lora", *recipe, f"training.update={{{', '.join(update)}}}", *sets)

    def parts(self, by: str) -> list[Path]:
        """A sub-model for each part of the rows, and the report that they are dispersed."""
        methods = {"random": "by_random", "kmeans": "{kind: by_kmeans, balanced: true}",
                   "conflict": "{kind: by_conflict, clusters: 16, sample: 4}"}  # fmt: skip
        sets = [
            f"disperse.parts={PARTS}",
            f"disperse.method={methods[by]}",
            f"disperse.seed={self.seed}",
            "weigh=tokens",
        ]
        if by != "random":
            sets.append(f"disperse.embed={self.embed}")
        merged = self._train(by, "disperse-then-merge", *sets)
        return [merged.with_name(f"{by}-parts") / f"part-{number}" for number in range(PARTS)]

    def report(self, by: str) -> dict[str, Any]:
        """What the command says about the parts."""
        content: dict[str, Any] = json.loads((self.folder / f"{by}-parts" / "report.json").read_text("utf-8"))
        return content

    def _train(self, name: str, recipe: str, *sets: str) -> Path:
        out = self.folder / name
        if not out.exists():
            shared = (f"data.files=[{self.rows}]", "data.held_out=0", f"training.seed={self.seed}", *TRAINING)
            weightops("train", recipe, *(word for each in (*shared, *sets) for word in ("--set", each)), "--out", out)
        return out


def _main(seed: _Seed, patched: PatchedModel) -> None:
    """Single SFT, the average of random parts, and the two controls."""
    single = wo.open_adapter(seed.single())
    parts = [wo.open_adapter(part) for part in seed.parts("random")]
    patched.measure(seed.seed, "single", single)
    patched.measure(seed.seed, "random average", mean(parts))
    _rescale(seed, patched, "random average")
    patched.measure(seed.seed, "single stopped", wo.open_adapter(seed.single() / STOPPED))
    patched.measure(seed.seed, "random part", parts[0])


def _merges(seed: _Seed, patched: PatchedModel) -> None:
    """The other merges of the random parts."""
    folders = seed.parts("random")
    parts = [wo.open_adapter(part) for part in folders]
    for method in MERGES:
        if not patched.has(seed.seed, f"random {method}"):
            patched.measure(seed.seed, f"random {method}", _merged(seed, method, folders))
    if not patched.has(seed.seed, "random core ties"):
        out = seed.folder / "core-ties"
        if not out.exists():
            settings = ("--method", "ties", "--space", "core", "--set", f"density={DENSITY}")
            weightops("adapters", "merge", *folders, *settings, "--out", out)
        patched.measure(seed.seed, "random core ties", wo.open_adapter(out))
    shares = [part["share_of_merge"] for part in seed.report("random")["parts"]]
    weighted = mean(parts, shares)
    patched.measure(seed.seed, "random by tokens", weighted, shares=shares)
    if not patched.has(seed.seed, "random soup"):
        patched.measure(seed.seed, "random soup", _soup(seed, patched, folders))


def _kmeans(seed: _Seed, patched: PatchedModel) -> None:
    _average(seed, patched, "kmeans")


def _conflict(seed: _Seed, patched: PatchedModel) -> None:
    _average(seed, patched, "conflict")


def _average(seed: _Seed, patched: PatchedModel, by: str) -> None:
    """The average of the parts of another method, and the single run at its norm."""
    folders = seed.parts(by)
    report = seed.report(by)
    parts = [wo.open_adapter(part) for part in folders]
    patched.measure(seed.seed, f"{by} average", mean(parts), rows=[part["rows"] for part in report["parts"]])
    _rescale(seed, patched, f"{by} average")


def _rescale(seed: _Seed, patched: PatchedModel, name: str) -> None:
    """The control: the single run's change, made as long as a merged one."""
    scale = patched.norm(seed.seed, name) / patched.norm(seed.seed, "single")
    patched.measure(seed.seed, f"single rescaled to {name}", scale * wo.open_adapter(seed.single()), scale=scale)


def _checkpoints(seed: _Seed, patched: PatchedModel) -> None:
    """One run at a constant rate: stopped at a quarter of its steps, at its end, and averaged in place of a decay."""
    run = seed.single("constant", "training.schedule=constant_with_warmup")
    kept = _checkpoints_of(run)
    patched.measure(seed.seed, "constant", wo.open_adapter(run))
    patched.measure(seed.seed, "constant stopped", wo.open_adapter(run / STOPPED))
    if not patched.has(seed.seed, "wsm"):
        out = seed.folder / "wsm"
        if not out.exists():
            weightops("average", *(f"{BASE}+{each}" for each in kept[-AVERAGED:]), "--decay", "1-sqrt",
                      "--dtype", "float32", "--out", out)  # fmt: skip
        patched.measure(seed.seed, "wsm", wo.open(out) - wo.open(BASE))


def _checkpoints_of(run: Path) -> list[Path]:
    """From the first to the last."""
    return sorted(run.glob("checkpoint-*"), key=lambda each: int(each.name.rpartition("-")[2]))


def _path(seed: _Seed, patched: PatchedModel) -> None:
    """The single run's change, scaled down."""
    single = wo.open_adapter(seed.single())
    for share in PATH:
        patched.measure(seed.seed, f"path {share:g}", share * single)


def mean(parts: Sequence[Delta], shares: Sequence[float] | None = None) -> Delta:
    """The weighted mean of changes; equal weights where none are given."""
    total = Delta()
    for part, share in zip(parts, shares or [1 / len(parts)] * len(parts), strict=True):
        total = total + share * part
    return total


def _merged(seed: _Seed, method: str, folders: Sequence[Path]) -> Delta:
    """The parts merged by ``weightops merge``, in fp32."""
    out = seed.folder / f"merged-{method}"
    if not out.exists():
        models = [
            {"model": f"{BASE}+{folder}", "parameters": {"weight": 1 / PARTS, "density": DENSITY}} for folder in folders
        ]
        config = {"models": models, "base_model": BASE, "dtype": "float32", **MERGES[method]}
        file = seed.folder / f"{method}.yml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
        weightops("merge", file, out, "--seed", str(seed.seed))
    return wo.open(out) - wo.open(BASE)


def _soup(seed: _Seed, patched: PatchedModel, folders: Sequence[Path]) -> Delta:
    """The greedy soup of the parts by ``weightops soup``, in fp32; it judges in bf16, as is measured here."""
    out = seed.folder / "soup"
    if not out.exists():
        settings = ("--base", BASE, "--data", patched.choice, "--precision", "bfloat16", "--dtype", "float32")
        weightops("soup", "greedy", *(f"{BASE}+{folder}" for folder in folders), *settings, "--out", out)
    return wo.open(out) - wo.open(BASE)
