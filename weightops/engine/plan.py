"""The plan of an output: everything to read, compute and write, and all problems, from headers alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import dtypes
from ..errors import Message, Remedy, WeightopsError
from ..io.quantised import CODES
from ..io.safetensors import MAX_HEADER, StoredTensor, build_header, read_header
from ..io.small_files import open_file
from .jobs import Job, LowRank, Scattered
from .requantise import requantised, strip_bytes
from .slices import file_of
from .whole_models import looks_at_models, measuring_work
from .whole_models import problems as model_problems

GIB = 1 << 30
DEFAULT_SHARD = 5_000_000_000
DEFAULT_MEMORY = 256 << 20
#: The dtypes of an output: ``auto`` keeps each tensor's, ``fp8-block`` a source's FP8 layout; others apply to all.
DTYPES = ("auto", *dtypes.FROM_TORCH, dtypes.FP8_BLOCK)
_COPIED = (*CODES, "F8_E8M0")  # stored numbers and scales that a job copies as they are
_MOST_BLOCKS = 2  # longer slices are not faster and need more memory: a slice should fit the cache


@dataclass(frozen=True)
class OutputFile:
    """A safetensors file to write; its header is known before any data."""

    name: str
    head: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class Plan:
    """Everything that execution needs, and every problem that prevents it.

    Attributes:
        jobs: One for each tensor; those that are written come first, in the order of the files.
        files: The safetensors files to write.
        problems: One line each; a plan with problems is not executed.
        notes: Facts that the user should know, but that are not problems.
        recipe: The canonical recipe, as JSON values.
        allow_nonfinite: Continue if NaN or Inf is found.
    """

    jobs: tuple[Job, ...]
    files: tuple[OutputFile, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    recipe: Mapping[str, Any]
    allow_nonfinite: bool = False
    inputs: tuple[Path, ...] = field(default=())

    @property
    def bytes_written(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def bytes_read(self) -> int:
        return sum(_bytes_read(job) for job in self.jobs)

    @property
    def work(self) -> int:
        """The sum of all progress reports while the plan is executed."""
        twice = sum(measuring_work(job) for job in self.jobs if looks_at_models(job))
        return twice + sum(job.count * job.widest * (len(job.operands) + job.written) for job in self.jobs)

    def check(self) -> None:
        """Raise every problem.

        Raises:
            WeightopsError: the plan has problems.
        """
        if self.problems:
            raise WeightopsError(*self.problems)

    def slice_blocks(self, threads: int, memory: int) -> int:
        """Blocks in a slice such that every thread's buffers fit into ``memory`` bytes together.

        Raises:
            WeightopsError: one block for each thread does not fit.
        """
        block, factors = self._largest()
        fitting = (memory // threads - factors) // block
        if fitting < 1:
            need = math.ceil(threads * (block + factors) / (1 << 20))
            raise WeightopsError(
                Message(
                    f"{memory >> 20} MiB of memory is too little for {threads} threads",
                    Remedy(f"give at least {need}MiB as {{}}", "memory"),
                    Remedy("use fewer {}", "threads"),
                )
            )
        return min(fitting, _MOST_BLOCKS)

    def peak_memory(self, threads: int, memory: int) -> int:
        """Bytes of buffers while the plan is executed."""
        merges = [(job, job.merge) for job in self.jobs if job.merge is not None]
        kept = max((min(4 * job.count * len(m.all_inputs), memory // threads) for job, m in merges), default=0)
        workspace = max((merge.workspace for _, merge in merges), default=0)
        strip = max((strip_bytes(job) for job in self.jobs), default=0)
        return threads * (self.buffer_bytes(threads, memory) + max(kept, workspace) + strip)

    def buffer_bytes(self, threads: int, memory: int) -> int:
        """Bytes of one thread's buffer for slices."""
        block, factors = self._largest()
        return block * self.slice_blocks(threads, memory) + factors

    def _largest(self) -> tuple[int, int]:
        """The largest buffer bytes of a job's block, and of a job's low-rank factors."""
        blocks = (job.block_elements * job.computed.row_bytes for job in self.jobs if job.merge is None)
        return max(blocks, default=1) or 1, max((job.factor_bytes for job in self.jobs), default=0)

    def identity(self) -> dict[str, Any]:
        """The facts that must be equal to resume a run: the recipe, the layout and the inputs' state."""
        layout = hashlib.sha256(b"".join(file.name.encode() + file.head for file in self.files))
        anchors = [job.anchor and (job.anchor.name, job.anchor.offset) for job in self.jobs]
        layout.update(repr([(job.patches, job.measure) for job in self.jobs]).encode() + repr(anchors).encode())
        return {
            "recipe": self.recipe,
            "layout": layout.hexdigest(),
            "inputs": {str(path): _state(path) for path in self.inputs},
        }

    def check_headers(self) -> None:
        """Check that each input's header is still the one that the plan was made from.

        Raises:
            WeightopsError: an input was replaced since it was opened.
        """
        used: dict[Path, set[StoredTensor]] = {}
        for part in (part for job in self.jobs for tensor in stored(job) for part in tensor.parts):
            used.setdefault(part.file, set()).add(part)
        changed = [file for file, tensors in sorted(used.items()) if not tensors <= set(read_header(file).tensors)]
        if changed:
            raise WeightopsError(*(_changed(file, "since it was opened") for file in changed))

    def check_unchanged(self, identity: Mapping[str, Any]) -> None:
        """Check that the inputs have not changed since the run began, so that no mixed output is put in place.

        Args:
            identity: The result of :meth:`identity` at that time.

        Raises:
            WeightopsError: an input is now a different file, or its size, time or header has changed; each is named.
        """
        before = identity["inputs"]
        changed = [path for path in self.inputs if _state_now(path) != before[str(path)]]
        if changed:
            raise WeightopsError(*(_changed(path, "while it was read") for path in changed))


def make_plan(
    jobs: Iterable[Job],
    recipe: Mapping[str, Any],
    *,
    dtype: str = "auto",
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
    shard_size: int = DEFAULT_SHARD,
    allow_nonfinite: bool = False,
) -> Plan:
    """Assign the jobs' results to files and collect all problems that headers show.

    Args:
        dtype: ``fp8-block`` writes in 8 bits what a source stores so; the jobs already have any other dtype.
        shard_size: Most bytes of data in a file; a single tensor may be larger.
    """
    jobs = tuple(jobs)
    if dtype == dtypes.FP8_BLOCK:
        jobs, layout_problems = requantised(jobs)
        problems = [*problems, *layout_problems]
    all_problems = [*problems, *(problem for job in jobs for problem in _job_problems(job)), *model_problems(jobs)]
    written = [job for job in jobs if job.written]
    if not written and not all_problems:
        all_problems.append("nothing to write: the sources have no tensor in common")
    files = () if all_problems else _files(written, shard_size)
    order = {name: number for number, name in enumerate(name for file in files for name in file.offsets)}
    jobs = tuple(sorted(jobs, key=lambda job: (not job.written, order.get(job.name, 0))))
    inputs = sorted({part.file for job in jobs for tensor in stored(job) for part in tensor.parts})
    return Plan(
        jobs,
        files,
        tuple(dict.fromkeys(all_problems)),
        tuple(dict.fromkeys(notes)),
        recipe,
        allow_nonfinite,
        tuple(inputs),
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of an output that have a wrong value, before anything is planned.

    Args:
        options: By name: ``dtype``, ``shard_size``, ``allow_nonfinite``.

    Raises:
        WeightopsError: every unknown option and every wrong value.
    """
    allowed: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
        "dtype": (f"one of {', '.join(DTYPES)}", lambda value: isinstance(value, str) and value in DTYPES),
        "shard_size": ("a whole number of bytes, at least 1", lambda value: type(value) is int and value >= 1),
        "allow_nonfinite": ("True or False", lambda value: isinstance(value, bool)),
    }
    faults = [
        f"{name} must be {allowed[name][0]}, not {value!r}"
        for name, value in options.items()
        if not allowed[name][1](value)
    ]
    if faults:
        raise WeightopsError(*faults)


def stored(job: Job) -> tuple[StoredTensor, ...]:
    """The stored tensors that a job reads."""
    tensors: list[StoredTensor] = []
    for operand in job.operands:
        if isinstance(operand, Scattered):
            tensors += [operand.indices, operand.values]
        else:
            tensors += [operand.left, operand.right] if isinstance(operand, LowRank) else [operand]
    return (*tensors, *(patch.source for patch in job.patches))


def parse_size(text: str) -> int:
    """Bytes of a size as people write it.

    Raises:
        WeightopsError: not a size.

    >>> parse_size("512MiB"), parse_size("5GB"), parse_size("1000")
    (536870912, 5000000000, 1000)
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().rstrip("BKMGTIbkmgti")
    unit = text.strip()[len(number) :].upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise WeightopsError(f"{text!r} is not a size; write for example 512MiB or 5GB") from None
    if size <= 0:
        raise WeightopsError(f"{text!r} is not a size; it must be more than 0")
    return size


def _files(jobs: Sequence[Job], shard_size: int) -> tuple[OutputFile, ...]:
    """Fill files in the order of the jobs, a new one where the next tensor would pass ``shard_size``."""
    shards: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        size = sum(dtypes.nbytes(*output) for output in job.outputs.values())
        if shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(job)
        filled += size
    return tuple(_output_file(shard, number, len(shards)) for number, shard in enumerate(shards, 1))


def _output_file(jobs: Sequence[Job], number: int, of: int) -> OutputFile:
    name = "model.safetensors" if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"
    outputs = {name: output for job in jobs for name, output in job.outputs.items()}
    head, offsets = build_header(outputs)
    size = len(head) + sum(dtypes.nbytes(*output) for output in outputs.values())
    return OutputFile(name, head, offsets, size)


def _job_problems(job: Job) -> Iterable[str]:
    """Problems of one job that the headers of its operands show."""
    for tensor in dict.fromkeys(stored(job)):
        if tensor.dtype in dtypes.QUANTISED_FLOATS and not (job.unchanged and tensor.dtype in _COPIED):
            yield quantised(tensor)
    sparse = [operand for operand in job.operands if isinstance(operand, Scattered)]
    positions = {entries.indices for entries in sparse}
    kinds = sorted({tensor.dtype for tensor in stored(job) if tensor not in positions} | {job.computed.dtype})
    if len({kind in dtypes.FLOATS for kind in kinds}) > 1:
        problem = f"{job.name}: mixes floats and integers ({', '.join(kinds)})"
        yield Message(problem, Remedy("leave it out with {}", "exclude"))
    elif sparse and job.dtype not in dtypes.FLOATS and job.overwritten is None:
        what = f"{job.name}: {sparse[0].indices.file} replaces integers, which is only possible in its own base"
        yield Message(what, Remedy("leave it out with {}", "exclude"))
    aligned = job.merge is not None and any(source.rows for source in job.merge.all_inputs)
    checked = job.operands if job.written and not aligned else ()
    for operand in checked:
        shape = operand.shape
        if not _fits(shape, job):
            yield (
                f"{job.name}: shape {shape} in {file_of(operand)}, {job.shape} in the output; the models must "
                "share an architecture"
            )


def _fits(shape: tuple[int, ...], job: Job) -> bool:
    """Whether an operand has the output's shape; if patches add rows after the anchor's, it may end in those."""
    if not job.patches or job.anchor is None:
        return shape == job.shape
    return shape[1:] == job.shape[1:] and job.anchor.shape[0] <= shape[0] <= job.shape[0]


def quantised(tensor: StoredTensor) -> str:
    """The problem line for a tensor that holds quantised weights."""
    return (
        f"{tensor.file}: {tensor.name} is quantised ({tensor.dtype}); dequantise first: load it in transformers, "
        "call model.dequantize() and model.save_pretrained(FOLDER)"
    )


def _bytes_read(job: Job) -> int:
    return sum(part.nbytes for tensor in stored(job) for part in tensor.parts)


def _state(path: Path) -> list[int | str]:
    """Values that change if a file is replaced: size, modification time (ns), inode and header."""
    with open(open_file(path), "rb") as stream:
        info = os.fstat(stream.fileno())
        length = stream.read(8)
        head = length + stream.read(min(int.from_bytes(length, "little"), MAX_HEADER))
    return [info.st_size, info.st_mtime_ns, info.st_ino, hashlib.sha256(head).hexdigest()]


def _state_now(path: Path) -> list[int | str] | None:
    """The state of a file, or ``None`` if it cannot be read."""
    try:
        return _state(path)
    except (OSError, WeightopsError):
        return None


def _changed(path: Path, when: str) -> str:
    return f"{path}: it was changed {when}, so nothing is written; rerun when no other program writes to it"


def canonical(value: Any) -> str:
    """JSON with one spelling: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
