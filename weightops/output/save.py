"""Writes an output: the engine writes the weights, this module the other files that transformers needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import dtypes
from ..engine.execute import default_threads, execute
from ..engine.plan import DEFAULT_MEMORY, Plan, canonical
from ..engine.tally import Tally
from ..errors import WeightopsError, short
from ..io.adapter import CONFIG as ADAPTER_CONFIG
from ..io.companions import GUARD_CARD, companions
from ..io.folder import INDEX
from ..io.opened import Source
from ..io.output_lock import OutputLock
from ..io.progress import Progress
from ..io.quantised import CODES, CONFIG_KEY, listing_plain
from ..io.small_files import MOST_BYTES, read_beside
from ..io.staging import Staging, output_problems
from ..io.weights import Weights
from .modelcard import Card, render
from .provenance import RECORD, record, record_file

if TYPE_CHECKING:
    from ..engine.ray_executor import RayExecutor

_NOT_CARRIED = (RECORD, GUARD_CARD, "trainer_state.json", "training_args.json", ADAPTER_CONFIG)
"""Files that describe the source's weights or training, so they are not true for the output."""
MOST_CARRIED = 256_000_000
"""Most bytes of all small files together; they are kept in memory."""


@dataclass(frozen=True)
class Package:
    """The contents of an output besides its weights.

    Attributes:
        model: The model whose configuration, tokenizer and chat template the output gets.
        sources: All models and adapters that the output is made of.
        card: The model card.
        config: Keys of ``config.json`` to change.
        files: Further files, or new contents for files of the model.
        left_out: Files of the model that are not copied.
        accept: Called with the measurements before the output is put in place; raises to refuse the output.
        accept_folder: Called with the complete folder before it is put in place; raises to refuse it.
    """

    model: Weights
    sources: tuple[Source, ...]
    card: Card
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    accept: Callable[[Tally], None] = lambda tally: None
    accept_folder: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Saved:
    """A finished output: its folder, and the measurements taken while writing."""

    folder: Path
    tally: Tally


@dataclass(frozen=True)
class Prepared:
    """A plan with its output path, checked and ready to write.

    Attributes:
        problems: All problems of the plan and of the output path.
    """

    plan: Plan
    package: Package
    out: Path
    overwrite: bool
    problems: tuple[str, ...]

    def write(
        self,
        *,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        progress: bool = True,
        lock: OutputLock | None = None,
        executor: RayExecutor | None = None,
    ) -> Saved:
        """Execute the plan and put the finished folder in its place.

        A killed run leaves a hidden folder next to ``out``; the same call resumes it, here or with an executor.

        Args:
            threads: Slices computed at the same time; with an executor, each worker computes one.
            memory: Most bytes of buffers; with an executor, of each worker.
            lock: The output's lock, where the caller holds it.
            executor: Computes elsewhere; by default threads of this process do.

        Raises:
            WeightopsError: the problems, or an error while writing.
        """
        if self.problems:
            raise WeightopsError(*self.problems)
        threads = 1 if executor is not None else default_threads() if threads is None else threads
        _check_limits(threads, memory)
        self.plan.slice_blocks(threads, memory)
        with nullcontext() if executor is None else executor.ready(self.plan, self.out) as elsewhere:

            def executed(staging: Staging) -> Tally:
                with Progress(self.plan.work, f"writing {self.out.name}", shown=progress) as bar:
                    return execute(
                        self.plan, staging, threads=threads, memory=memory, progress=bar.update, elsewhere=elsewhere
                    )

            return self.write_by(executed, lock=lock)

    def write_by(self, compute: Callable[[Staging], Tally], *, lock: OutputLock | None = None) -> Saved:
        """Let ``compute`` write the plan's files into the staged folder, add the other files, and put it in its place.

        Raises:
            WeightopsError: the problems, or an error while writing.
        """
        if self.problems:
            raise WeightopsError(*self.problems)
        identity = self.plan.identity()
        self.plan.check_headers()
        carried = carried_files(self.package.model.folder)
        with Staging(self.out, identity, overwrite=self.overwrite, lock=lock) as staging:
            tally = compute(staging)
            self.package.accept(tally)
            for name, data in _files(self.plan, self.package, tally, carried).items():
                staging.write(name, data)
            self.package.accept_folder(staging.model)
            self.plan.check_unchanged(identity)
            staging.commit()
        return Saved(staging.out, tally)


def _check_limits(threads: int, memory: int) -> None:
    for name, value in (("threads", threads), ("memory", memory)):
        if not isinstance(value, int) or value < 1:
            unit = " of bytes" if name == "memory" else ""
            raise WeightopsError(f"{name} must be a whole number{unit}, at least 1; found {value!r}")


def prepare(plan: Plan, package: Package, out: Path, *, overwrite: bool = False) -> Prepared:
    """Check whether this plan can be written to this path."""
    inputs = [*plan.inputs, *(s.folder for s in package.sources if s.folder is not None)]
    place = output_problems(out, inputs, plan.bytes_written, overwrite=overwrite)
    return Prepared(plan, package, out, overwrite, (*plan.problems, *_unwritable(plan, package, out), *place))


def _unwritable(plan: Plan, package: Package, out: Path) -> list[str]:
    """Problems with text that cannot be written as UTF-8 into the record, the card or the configuration."""
    texts = {str(out): "the output's name", **{source.spec: "a source's name" for source in package.sources}}
    texts |= {
        canonical(plan.recipe): "the recipe",
        canonical({**package.model.config, **package.config}): "config.json",
    }
    return [
        f"{short(text)}: {what} is not UTF-8 text; choose another" for text, what in texts.items() if _no_text(text)
    ]


def _no_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def save(
    plan: Plan,
    package: Package,
    out: Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
    lock: OutputLock | None = None,
    executor: RayExecutor | None = None,
) -> Saved:
    """Check a plan and write it; see :meth:`Prepared.write`.

    Raises:
        WeightopsError: every problem of the plan and the output path, or an error while writing.
    """
    prepared = prepare(plan, package, out, overwrite=overwrite)
    return prepared.write(threads=threads, memory=memory, progress=progress, lock=lock, executor=executor)


def _files(plan: Plan, package: Package, tally: Tally, carried: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every small file of the output, by name."""
    provenance = record(plan, tally, package.sources)
    files = {n: data for n, data in carried.items() if n not in package.left_out}
    if package.model.config:
        changed = {**_dtype_keys(plan, package.model), **_quantisation(plan, package), **package.config}
        files["config.json"] = _json({**package.model.config, **changed})
    if len(plan.files) > 1:
        files[INDEX] = _json(_index(plan))
    files |= package.files
    config = {**package.model.config, **package.config}
    names = (*files, RECORD)
    files["README.md"] = render(package.card, provenance, package.sources, names, config).encode()
    return {**files, RECORD: record_file(provenance, files)}


def carried_files(folder: Path | None) -> dict[str, bytes]:
    """A model folder's small files: configuration, tokenizer, templates, its own code, its licence."""
    if folder is None:
        return {}
    names = [path.relative_to(folder).as_posix() for path in companions(folder) if path.name not in _NOT_CARRIED]
    files: dict[str, bytes] = {}
    room = MOST_CARRIED
    for name in names:
        files[name] = read_beside(folder, name, min(room, MOST_BYTES))
        room -= len(files[name])
    return files


def _dtype_keys(plan: Plan, model: Weights) -> dict[str, str]:
    """The dtype key of the config, if the output's weights have a different dtype."""
    written = {job.dtype for job in plan.jobs if job.written and job.dtype in dtypes.FLOATS}
    if len(written) != 1 or written == {t.dtype for t in model.tensors.values() if t.dtype in dtypes.FLOATS}:
        return {}
    return {"torch_dtype" if "torch_dtype" in model.config else "dtype": dtypes.TO_TORCH[written.pop()]}


def _quantisation(plan: Plan, package: Package) -> dict[str, Any]:
    """What the config says of weights that are written in 8 bits: the words of the source whose layout they have."""
    names = {job.name: job.dtype in CODES for job in plan.jobs if job.written and len(job.shape) > 1}
    models = [source for source in (package.model, *package.sources) if isinstance(source, Weights)]
    layout = next((model.quantisation for model in models if model.quantisation), None)
    return {CONFIG_KEY: listing_plain(layout, names)} if layout and any(names.values()) else {}


def _index(plan: Plan) -> dict[str, Any]:
    shard_of = {name: file.name for file in plan.files for name in file.offsets}
    total = sum(file.size - len(file.head) for file in plan.files)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
