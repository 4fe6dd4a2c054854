"""What large merges read, write and compute, on paper: ``python -m examples.experiments.scale [--measure]``.

``--measure`` times the engine on a small model, one thread, and keeps the processor's seconds in ``scale.json``. Either
way the tables of docs/scale.md are then worked out from those figures, the shapes of the models' tensors and the number
of passes that each method takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

from examples.experiments.evidence import DOCS, Page, grid
from examples.experiments.steps import program, write_page

STORAGE: Final = (1e9, 5e9, 20e9)
"""Bytes a second that a filesystem reads and writes, all machines together."""
BF16: Final = 2
TIES_PASSES: Final = 3
"""Two histograms for the thresholds, then the merge itself; one pass where a tensor stays in memory in between."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A published architecture, as far as merging cares.

    Attributes:
        counts: How many tensors there are of each shape.
    """

    name: str
    counts: Mapping[Shape, int]

    @property
    def parameters(self) -> int:
        return sum(prod(shape) * count for shape, count in self.counts.items())

    @property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max(map(prod, self.counts))


@dataclass(frozen=True)
class Work:
    """A job of the table.

    Attributes:
        figure: The measured figure for tensors that are kept in memory, or for all.
        inputs: Models that it reads.
        passes: Passes over a tensor that does not stay in memory.
        many_passes: The measured figure for such tensors.
    """

    name: str
    figure: str
    inputs: int
    passes: int = 1
    many_passes: str = ""

    def passes_over(self, elements: int, memory: int) -> int:
        """Passes over the inputs of one tensor; those kept in memory are fp32."""
        return 1 if 4 * self.inputs * elements <= memory else self.passes

    def core_seconds(self, elements: int, memory: int, measured: Mapping[str, float]) -> float:
        """Seconds of one processor for one tensor."""
        kept = self.passes_over(elements, memory) == 1
        return elements * 1e-9 * measured[self.figure if kept else self.many_passes]


WORKS: Final = (
    Work("linear, two models", "linear", 2),
    Work("TIES, three models and base", "ties", 4, TIES_PASSES, "ties, three passes"),
    Work("compose-guard", "compose-guard", 3),
)
MEMORY: Final = 256 << 20
"""``--memory``, of each worker: the default."""


def llama(name: str, hidden: int, inner: int, layers: int, vocabulary: int = 128_256, narrow: int = 1024) -> Model:
    """A Llama 3 by its configuration."""
    counts: dict[Shape, int] = {}
    attention = [(hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden)]
    for shape in (*attention, (inner, hidden), (inner, hidden), (hidden, inner)):
        counts[shape] = counts.get(shape, 0) + layers
    return Model(name, {**counts, (vocabulary, hidden): 2, (hidden,): 2 * layers + 1})


def deepseek() -> Model:
    """DeepSeek-V3 without its layer for multi-token prediction; 58 of 61 layers have 256 experts and a shared one."""
    hidden, inner, expert, layers, dense, experts = 7168, 18_432, 2048, 61, 3, 256
    moe = layers - dense
    return Model(
        "671B",
        {
            (1536, hidden): layers,
            (1536,): layers,
            (128 * 192, 1536): layers,
            (512 + 64, hidden): layers,
            (512,): layers,
            (128 * 256, 512): layers,
            (hidden, 128 * 128): layers,
            (hidden,): 2 * layers + 1,
            (inner, hidden): 2 * dense,
            (hidden, inner): dense,
            (experts, hidden): moe,
            (experts,): moe,
            (expert, hidden): 2 * moe * (experts + 1),
            (hidden, expert): moe * (experts + 1),
            (129_280, hidden): 2,
        },
    )


MODELS: Final = (llama("70B", 8192, 28_672, 80), llama("405B", 16_384, 53_248, 126), deepseek())


@dataclass(frozen=True)
class Estimate:
    """A row of the table: bytes, and seconds of one processor."""

    read: int
    written: int
    core_seconds: float

    def seconds(self, storage: float) -> float:
        """Seconds at so many bytes a second, where enough processors compute meanwhile."""
        return (self.read + self.written) / storage

    def cores(self, storage: float) -> int:
        """Processors that compute at least as fast as the storage reads and writes."""
        return ceil(self.core_seconds / self.seconds(storage))


def estimate(model: Model, work: Work, measured: Mapping[str, float], memory: int = MEMORY) -> Estimate:
    """Work out one job on one model; every model is in bf16."""
    sizes = [(prod(shape), count) for shape, count in model.counts.items()]
    read = sum(n * count * BF16 * work.inputs * work.passes_over(n, memory) for n, count in sizes)
    seconds = sum(count * work.core_seconds(n, memory, measured) for n, count in sizes)
    return Estimate(read, model.parameters * BF16, seconds)


def tables(measured: Mapping[str, float]) -> dict[str, str]:
    """The tables of the page, by their marks."""
    figures = grid(["measured", "ns of one processor for an element"], [[k, f"{v:.2f}"] for k, v in measured.items()])
    return {"figures": figures, "paper": grid(_HEAD, list(_rows(measured)))}


_HEAD: Final = [
    *("model", "job", "read", "written", "at 1 GB/s", "at 5 GB/s", "at 20 GB/s", "processors for the three"),
    "largest tensor, one processor",
]


def _rows(measured: Mapping[str, float]) -> Iterator[list[str]]:
    for model in MODELS:
        for work in WORKS:
            row = estimate(model, work, measured)
            times = [f"{row.seconds(storage):,.0f} s" for storage in STORAGE]
            cores = ", ".join(str(row.cores(storage)) for storage in STORAGE)
            alone = work.core_seconds(model.largest, MEMORY, measured) if work.passes > 1 else 0.0
            longest = f"{alone:.0f} s" if alone else "shared by all"
            yield [model.name, work.name, _bytes(row.read), _bytes(row.written), *times, cores, longest]


def _bytes(size: int) -> str:
    return f"{size / 1e12:.2f} TB" if size >= 1e12 else f"{size / 1e9:.0f} GB"


def measure() -> dict[str, float]:
    """Nanoseconds of one processor that the engine needs for an element of the output, each the least of three runs."""
    import torch

    import weightops as wo

    with TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder)
        shape, layers = (2048, 8192), 8
        draw = torch.Generator().manual_seed(0)
        base_weights = {f"model.layers.{n}.mlp.up_proj.weight": 0.02 * torch.randn(shape, generator=draw)
                        for n in range(layers)}  # fmt: skip
        models = [wo.open(_written(place / "base", base_weights))]
        for n in range(3):
            changed = {name: w + 0.001 * torch.randn(shape, generator=draw) for name, w in base_weights.items()}
            models.append(wo.open(_written(place / str(n), changed)))
        base, *tuned = models
        ties = wo.ties([one - base for one in tuned], density=0.3).on(base)
        kept, small = 4 * 4 * prod(shape), 64 << 20
        jobs: dict[str, tuple[Any, int]] = {
            "linear": (wo.average(tuned[:2]), MEMORY),
            "ties": (ties, kept),
            "ties, three passes": (ties, small),
            "compose-guard": (wo.compose_guard(tuned[0], base, tuned[1]), MEMORY),
        }
        elements = prod(shape) * layers
        return {name: min(_seconds(job.save, place / "out", memory) for _ in range(3)) / elements * 1e9
                for name, (job, memory) in jobs.items()}  # fmt: skip


def _written(folder: Path, weights: Mapping[str, Any]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def _seconds(save: Callable[..., Path], out: Path, memory: int) -> float:
    """Seconds of the processor, user and system, that one run of one thread takes."""
    begin = time.process_time()
    save(out, threads=1, memory=memory, progress=False, overwrite=True)
    return time.process_time() - begin


PAGE: Final = Page(DOCS / "scale.md", Path(__file__).with_suffix(".json"), tables)


@program(__doc__)
@click.option("--measure", "measures", is_flag=True, help="Time the engine first.")
def main(measures: bool) -> None:
    """Measure, if it is asked for, and write the page's tables."""
    if measures:
        PAGE.results.write_text(json.dumps(measure(), indent=2) + "\n")
    write_page(PAGE)


if __name__ == "__main__":
    main()
