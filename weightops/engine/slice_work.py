"""What a worker does with a slice: it reads, computes, writes, and measures what was read and written.

A worker is a thread of this process, or a process of a cluster (:mod:`.slice_server`).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from .. import dtypes
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from . import slices, whole_models
from .blocks import Room
from .jobs import BLOCK, BlockScales, Job, JobSlice
from .plan import Plan, stored
from .requantise import StripWriter
from .tally import Record, block_digest, combined_digest
from .torch_threads import one_torch_thread

if TYPE_CHECKING:
    from .merging import Gram

Thing = TypeVar("Thing")
Write = Callable[[int, slices.Bytes], None]
WriteSlice = Callable[[Job, int, slices.Bytes], None]
#: A slice, and its records if the journal has them.
Todo = tuple[JobSlice, list[Record]]
#: A slice's records, and whether it was computed now; it is not if the staged file still is what the journal says.
Computed = tuple[list[Record], bool]
Resuming = Callable[[JobSlice, list[Record]], Computed]
#: Descriptor and offset of each output tensor.
Places = Mapping[str, tuple[int, int]]


class Finished(NamedTuple):
    """A slice with its records, and whether it was computed now, or taken from the journal."""

    piece: JobSlice
    records: list[Record]
    fresh: bool


@dataclass(frozen=True)
class Workers:
    """What computes a plan into its staged files: threads of this process, or processes of a cluster.

    Attributes:
        count: How many there are; as many threads may call them at once.
        blocks: Most blocks of a slice that one is given.
        gram_of: The Gram matrix of a job of a method that looks at whole models, by the job's number in the plan.
        compute: Computes a slice, with its records in the journal and the Gram matrix that its method needs.
    """

    count: int
    blocks: int
    gram_of: Callable[[int], Gram]
    compute: Callable[[JobSlice, list[Record], Gram | None], Computed]


#: Workers that are not threads of this process: of a plan, the staged folder, and each worker's bytes of buffers.
Elsewhere = Callable[[Plan, Path, int], AbstractContextManager[Workers]]


def workers_here(
    plan: Plan,
    owned: list[list[StoredTensor]],
    files: Mapping[Path, int],
    outputs: Places,
    threads: int,
    memory: int,
) -> Workers:
    """Threads of this process; each has a buffer.

    Args:
        owned: For each job, the operands whose digests its records hold.
    """
    merge, blocks = _merger(plan, files, threads, memory), plan.slice_blocks(threads, memory)
    buffers = _each(threads, lambda: np.empty(plan.buffer_bytes(threads, memory), np.uint8))

    def writer(name: str, dtype: str) -> Write:
        descriptor, begin = outputs[name]
        size = dtypes.itemsize(dtype)
        return lambda element, data: slices.write_all(descriptor, data, begin + element * size)

    def affine(piece: JobSlice, write: Write | None, *, hashed: bool) -> list[Record]:
        with _lent(buffers) as buffer:
            rows = slices.rows_of(piece, buffer)
            result, squares = slices.compute(piece, rows, files, allow_nonfinite=plan.allow_nonfinite)
            records = _records(piece, owned[piece.number], rows, result if hashed else None, squares)
            if write is not None:
                write(piece.begin, result)
            return records

    def scaled(piece: JobSlice, scales: BlockScales, model: Gram | None) -> Record:
        job, computed = piece.job, piece.job.computed
        strips = StripWriter(job, scales, writer(job.name, job.dtype), writer(scales.name, scales.dtype))
        if job.merge is not None:
            return merge(computed, strips.write, model) | strips.record()
        parts = replace(piece, job=computed).parts(blocks)
        records = [record for part in parts for record in affine(part, strips.write, hashed=False)]
        return _summed(records) | strips.record()

    def fresh(piece: JobSlice, model: Gram | None) -> list[Record]:
        job = piece.job
        if job.scales is not None:
            return [scaled(piece, job.scales, model)]
        if job.merge is not None:
            return [merge(job, writer(job.name, job.dtype), model)]
        write = writer(job.name, job.dtype) if job.written else None
        return [record for part in piece.parts(blocks) for record in affine(part, write, hashed=job.written)]

    def compute(piece: JobSlice, recorded: list[Record], model: Gram | None) -> Computed:
        if recorded and _is_as_recorded(piece, recorded, outputs):
            return recorded, False
        return fresh(piece, model), True

    return Workers(threads, blocks, measurer(plan, files, threads), compute)


def torch_for(plan: Plan) -> AbstractContextManager[None]:
    """One thread of torch a worker, if the plan has a method that runs in torch; otherwise torch is not loaded."""
    if any(job.merge is not None for job in plan.jobs):
        from .merging import needs_torch  # imported here because only merge methods need it

        if any(map(needs_torch, plan.jobs)):
            return one_torch_thread()
    return nullcontext()


def measurer(plan: Plan, files: Mapping[Path, int], threads: int) -> Callable[[int], Gram]:
    """The function by which threads measure a job, by its number, for a method that looks at whole models."""
    rooms = _each(threads, Room)

    def measured(number: int) -> Gram:
        from .merging import gram_of  # imported here because only merge methods need it

        with _lent(rooms) as room:
            return gram_of(plan.jobs[number], files, room, allow_nonfinite=plan.allow_nonfinite)

    return measured


def _is_as_recorded(piece: JobSlice, records: list[Record], places: Places) -> bool:
    """Whether the staged file still matches the journal: someone may have changed it after the kill."""
    job = piece.job
    if not job.written:
        return True
    if job.whole:
        of_outputs = zip(("out", "scales"), job.outputs.items(), strict=False)
        return all(
            records[0].get(key) == combined_digest(_staged(places[name], dtype, 0, dtypes.count(shape)))
            for key, (name, (dtype, shape)) in of_outputs
        )
    return [record.get("out") for record in records] == list(
        _staged(places[job.name], job.dtype, piece.begin, piece.end)
    )


def _staged(place: tuple[int, int], dtype: str, begin: int, end: int) -> Iterator[str]:
    """The digests of the blocks of some elements of a staged tensor."""
    (descriptor, offset), size = place, dtypes.itemsize(dtype)
    for block in range(begin, end, BLOCK):
        count = min(block + BLOCK, end) - block
        yield block_digest(os.pread(descriptor, count * size, offset + block * size))


def _records(
    piece: JobSlice, owned: list[StoredTensor], rows: slices.Bytes, result: slices.Bytes | None, squares: slices.Squares
) -> list[Record]:
    """For each block of a slice, the digests of operands, that of the result if it is given, and squared norms."""
    job, size = piece.job, dtypes.itemsize(piece.job.dtype)
    places = [job.operands.index(tensor) for tensor in owned]
    copied = owned.index(job.anchor) if job.unchanged and job.anchor in owned else None
    records: list[Record] = []
    for block, span in enumerate(piece.spans):
        lo, hi = span
        digests = [_digest(rows[k], tensor, piece, span) for k, tensor in zip(places, owned, strict=True)]
        record: Record = {"in": digests}
        if result is not None:
            record["out"] = block_digest(result[lo * size : hi * size]) if copied is None else digests[copied]
        if job.measure:
            record["squares"] = squares[block].tolist()
        records.append(record)
    return records


def _summed(records: list[Record]) -> Record:
    """One record of the blocks of a whole tensor."""
    summed: Record = {
        "in": [combined_digest(digests) for digests in zip(*(record["in"] for record in records), strict=True)]
    }
    if "squares" in records[0]:
        summed["squares"] = [sum(column) for column in zip(*(record["squares"] for record in records), strict=True)]
    return summed


def _digest(row: slices.Bytes, tensor: StoredTensor, piece: JobSlice, span: tuple[int, int]) -> str:
    """The digest of one block of an operand; an empty text past the operand's end (patches may add rows)."""
    size, (lo, hi) = dtypes.itemsize(tensor.dtype), span
    end = min(hi, tensor.count - piece.begin)
    return block_digest(row[lo * size : end * size]) if end > lo else ""


def _merger(
    plan: Plan, files: Mapping[Path, int], threads: int, memory: int
) -> Callable[[Job, Write, Gram | None], Record]:
    """A function that computes a whole tensor with a merge method and writes it."""
    rooms = _each(threads, Room)

    def merge(job: Job, write: Write, model: Gram | None) -> Record:
        from . import merging  # imported here because only merge methods need it

        with _lent(rooms) as room:
            return merging.run(
                job,
                files,
                write,
                memory=memory // threads,
                allow_nonfinite=plan.allow_nonfinite,
                room=room,
                model=model,
            )

    return merge


def filler(
    plan: Plan,
    files: Mapping[Path, int],
    write: WriteSlice,
    grams: whole_models.Grams,
    threads: int,
    memory: int,
) -> Callable[[JobSlice], None]:
    """The function that :func:`.execute.fill` runs on a slice; it measures nothing."""
    merge = _merger(plan, files, threads, memory)
    buffers = _each(threads, lambda: np.empty(plan.buffer_bytes(threads, memory), np.uint8))

    def work(piece: JobSlice) -> None:
        if piece.job.whole:
            merge(piece.job, partial(write, piece.job), model_of(piece.job, grams))
            return
        with _lent(buffers) as buffer:
            rows = slices.rows_of(piece, buffer)
            result, _ = slices.compute(piece, rows, files, allow_nonfinite=plan.allow_nonfinite)
            write(piece.job, piece.begin, result)

    return work


def model_of(job: Job, grams: whole_models.Grams) -> Gram | None:
    """The Gram matrix of the models that a job merges, if its method looks at whole models."""
    return grams.get(job.merge.method) if job.merge is not None else None


def _each(threads: int, make: Callable[[], Thing]) -> SimpleQueue[Thing]:
    """One thing for each thread."""
    spare: SimpleQueue[Thing] = SimpleQueue()
    for _ in range(threads):
        spare.put(make())
    return spare


@contextmanager
def _lent(spare: SimpleQueue[Thing]) -> Iterator[Thing]:
    item = spare.get()
    try:
        yield item
    finally:
        spare.put(item)


def open_inputs(plan: Plan, stack: ExitStack) -> dict[Path, int]:
    """Every input file, read only; the limit on open files is raised as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files: dict[Path, int] = {}
    for path in dict.fromkeys(part.file for job in plan.jobs for tensor in stored(job) for part in tensor.parts):
        try:
            files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightopsError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        stack.callback(os.close, files[path])
    return files
