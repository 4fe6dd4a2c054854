"""Writing an adapter: factors as they are computed, then a folder that PEFT loads and ``weightops verify`` checks."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from .. import dtypes
from ..engine.execute import default_threads
from ..engine.jobs import BLOCK, Job
from ..engine.plan import Plan
from ..engine.tally import Tally, block_digest, combined_digest, tensor_digest
from ..engine.torch_threads import one_torch_thread, take_thread_count
from ..errors import Message, Remedy, WeightopsError
from ..io.adapter import CONFIG, WEIGHTS
from ..io.gguf import ALIASES
from ..io.hub import is_hub_id
from ..io.opened import Source
from ..io.progress import Progress
from ..io.safetensors import StoredTensor, build_header
from ..io.spool import TensorSpool
from ..io.staging import Staging, output_problems
from ..output.modelcard import Card, render
from ..output.provenance import RECORD, record, record_file
from .factors import Factors

T = TypeVar("T")
R = TypeVar("R")

#: What the factors may be stored in.
FACTOR_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class AdapterTarget:
    """A weight that an adapter changes.

    Attributes:
        name: The tensor's, ending in ``.weight``.
        embedding: Whether PEFT holds its factors as an embedding's.
        transposed: Whether the weight is the transpose of what PEFT calls B @ A.
    """

    name: str
    embedding: bool = False
    transposed: bool = False

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    def keys(self) -> tuple[str, str]:
        """The names of B and A in the adapter's file."""
        form = "lora_embedding_{}" if self.embedding else "lora_{}.weight"
        return tuple(f"base_model.model.{self.module}.{form.format(side)}" for side in "BA")  # type: ignore[return-value]


@dataclass(frozen=True)
class AdapterPlan:
    """Everything about an adapter to write but its factors.

    Attributes:
        targets: In the order in which they are computed.
        config: Keys of ``adapter_config.json`` beside ranks and targets.
        sources: What it is made of.
        read: Stored tensors of the sources that are models; their digests go into the record.
        recipe: What is computed, as JSON values.
        carried: Tensors that go out as they are, by their key.
        size: Bytes to be written at most.
        dtype: Of the factors, one of :data:`FACTOR_DTYPES`.
    """

    targets: tuple[AdapterTarget, ...]
    config: Mapping[str, Any]
    sources: tuple[Source, ...]
    read: tuple[StoredTensor, ...]
    recipe: Mapping[str, Any]
    card: Card
    size: int
    dtype: str = "float32"
    carried: Mapping[str, StoredTensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def problems(self, out: Path, *, overwrite: bool) -> list[str]:
        """The problems with writing to this place."""
        folders = [source.folder for source in self.sources if source.folder is not None]
        return output_problems(out, [*folders, *self._inputs], self.size, overwrite=overwrite)

    @property
    def _inputs(self) -> tuple[Path, ...]:
        return tuple(sorted({file for source in self.sources for file in source.files}))

    def whole(self) -> Plan:
        """The engine's plan of no job: it knows the state of the inputs."""
        return Plan((), (), (), self.notes, self.recipe, inputs=self._inputs)


def write_adapter(
    plan: AdapterPlan,
    compute: Callable[[AdapterTarget], Factors | None],
    out: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
    measured: Sequence[AdapterTarget] = (),
) -> Path:
    """Compute each target's factors and put the finished adapter in its place.

    Args:
        compute: Called on several threads; ``None`` where nothing is to be written for a target.
        threads: Targets computed at a time.
        measured: Further tensors that ``compute`` is called with; nothing is written for them.

    Raises:
        WeightopsError: the problems with the plan or the place, or an error while writing; ``out`` is then as it was.
    """
    if problems := plan.problems(out, overwrite=overwrite):
        raise WeightopsError(*problems)
    threads = threads or default_threads()
    state = plan.whole()
    identity = state.identity()
    with Staging(out, identity, overwrite=overwrite) as staging:
        with tempfile.TemporaryFile(dir=staging.folder) as spool, one_torch_thread():
            spooled = _Spool(spool, plan.dtype)
            targets = (*plan.targets, *measured)
            with Progress(len(targets), f"writing {out.name}", unit=" tensors", shown=progress) as bar:
                for target, factors in in_order(compute, targets, threads):
                    spooled.add(target, factors)
                    bar.update()
            for key, tensor in plan.carried.items():
                spooled.carry(key, tensor)
            tally = Tally(outputs=spooled.write(staging))
        tally.inputs.update(zip(plan.read, _digests(plan.read, threads), strict=True))
        for name, data in _files(plan, spooled, tally).items():
            staging.write(name, data)
        state.check_unchanged(identity)
        staging.commit()
    return staging.out


def in_order(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[tuple[T, R]]:
    """Each item with its result, in order; a few results more than there are threads wait at most."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads, initializer=take_thread_count) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > threads:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def base_id(spec: str) -> str:
    """How ``adapter_config.json`` names a base: an alias by its id on the hub, a revision left out.

    >>> base_id("smollm2-135m-instruct"), base_id("org/base@main")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'org/base')
    """
    if spec in ALIASES:
        return ALIASES[spec].hub
    return spec if Path(spec).expanduser().exists() else spec.partition("@")[0]


def adapter_front(base: object) -> dict[str, Any]:
    """The front matter by which the hub shows an adapter with its base; a local path is no id."""
    front: dict[str, Any] = {"library_name": "peft", "base_model_relation": "adapter"}
    if isinstance(base, str) and is_hub_id(base) and not Path(base).exists():
        front["base_model"] = base
    return front


def dtype_problem(dtype: str) -> list[str]:
    """The problem line for a dtype that factors cannot be stored in."""
    if dtype in FACTOR_DTYPES:
        return []
    return [
        Message(
            f"dtype {dtype!r}: factors are stored in {', '.join(FACTOR_DTYPES)}", Remedy("choose another {}", "dtype")
        )
    ]


class _Spool(TensorSpool):
    """An adapter's factors: where each lies in the file is known only once all ranks are."""

    def __init__(self, stream: IO[bytes], dtype: str) -> None:
        super().__init__(stream)
        self.ranks: dict[str, int] = {}
        self.targets: list[AdapterTarget] = []
        self._dtype = dtype

    def add(self, target: AdapterTarget, factors: Factors | None) -> None:
        if factors is None:
            return
        stored = [side.to(getattr(torch, self._dtype)).contiguous() for side in (factors.left, factors.right)]
        if not all(bool(torch.isfinite(side).all()) for side in stored):
            what = f"{target.name}: a factor is too large for {self._dtype}"
            raise WeightopsError(Message(what, Remedy("choose another {}", "dtype")))
        for key, side in zip(target.keys(), stored, strict=True):
            self.append(
                key, dtypes.FROM_TORCH[self._dtype], tuple(side.shape), side.view(torch.uint8).numpy().tobytes()
            )
        self.ranks[target.module] = factors.rank
        self.targets.append(target)

    def carry(self, key: str, tensor: StoredTensor) -> None:
        with open(tensor.file, "rb") as stream:
            stream.seek(tensor.offset)
            self.append(key, tensor.dtype, tensor.shape, stream.read(tensor.nbytes))

    def write(self, staging: Staging) -> dict[str, str]:
        """The adapter's weights file; the digest of each tensor, as :mod:`..output.provenance` computes it."""
        if not self.tensors:
            raise WeightopsError("nothing to write: no tensor changes; check that the inputs are the ones you mean")
        head, offsets = build_header(self.tensors)
        descriptor = staging.allocate(WEIGHTS, head, len(head) + self.size)
        digests = {}
        with open(descriptor, "r+b", closefd=False) as file:
            for name, offset in offsets.items():
                file.seek(offset)
                digests[name] = combined_digest(_copied(self.blocks(name, BLOCK), file))
        return digests


def _copied(blocks: Iterable[bytes], file: IO[bytes]) -> Iterator[str]:
    for data in blocks:
        file.write(data)
        yield block_digest(data)


def _digests(tensors: Sequence[StoredTensor], threads: int) -> list[str]:
    return [digest for _, digest in in_order(tensor_digest, tensors, threads)]


def _files(plan: AdapterPlan, spooled: _Spool, tally: Tally) -> dict[str, bytes]:
    """The small files, by name."""
    jobs = tuple(Job(name, dtype, shape, None) for name, (dtype, shape) in spooled.tensors.items())
    made = record(Plan(jobs, (), (), (), plan.recipe), tally, plan.sources)
    config = json.dumps(_config(plan, spooled), indent=2, ensure_ascii=False) + "\n"
    files = {CONFIG: config.encode(), "README.md": render(plan.card, made, plan.sources).encode()}
    return {**files, RECORD: record_file(made, files)}


def _config(plan: AdapterPlan, spooled: _Spool) -> dict[str, Any]:
    """``adapter_config.json``. Each alpha equals its rank: the scale is in the factors, and every reader finds 1."""
    usual = Counter(spooled.ranks.values()).most_common(1)[0][0] if spooled.ranks else 1
    others = {re.escape(module): rank for module, rank in sorted(spooled.ranks.items()) if rank != usual}
    return {
        "peft_type": "LORA",
        **plan.config,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(spooled.ranks),
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }
