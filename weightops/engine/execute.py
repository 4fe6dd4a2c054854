"""Executes a plan: reads slices with pread into reused buffers, computes them, and writes them in place.

Threads take slices in order and results are collected in order, so digests, sums and the first error do not depend on
the number of threads. Memory is threads x slice buffers, independent of the model's size.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from ..io.safetensors import StoredTensor
from ..io.staging import Staging
from . import slices, whole_models
from .blocks import Room
from .jobs import BLOCK, Job, JobSlice, Scattered
from .plan import DEFAULT_MEMORY, Plan, stored
from .tally import Gather, Record, Tally, block_digest, check_bases, combined_digest, owned_operands, tensor_digest

Thing = TypeVar("Thing")

ReportProgress = Callable[[int], None]
WriteSlice = Callable[[Job, int, slices.Bytes], None]
Work = Callable[[JobSlice], list[Record]]
Places = Mapping[str, tuple[int, int]]
Done = Mapping[tuple[int, int], Record]
Journal = Sequence[Mapping[str, Any]]
_AHEAD = 256  # slices that may wait for an earlier one: one thread may have a whole embedding to merge


def execute(
    plan: Plan, staging: Staging, *, threads: int, memory: int = DEFAULT_MEMORY, progress: ReportProgress | None = None
) -> Tally:
    """Compute every job of a plan into the staged files.

    Args:
        threads: Number of slices computed at a time.
        memory: Bytes of buffers, all threads together.
        progress: Called with the bytes that each finished slice read and wrote.

    Raises:
        WeightopsError: the plan has problems, or the data hold NaN or Inf, or integer tensors differ.
    """
    plan.check()
    blocks = plan.slice_blocks(threads, memory)
    owned = owned_operands(plan)
    gather = Gather(owned)
    gather.begin(plan)
    journal = staging.done()
    with ExitStack() as stack:
        files, places = _open_inputs(plan, stack), allocate(plan, staging)
        grams = _measured(plan, files, staging, journal, threads, progress)
        work = _worker(plan, owned, files, places, grams, threads, memory)
        for piece, records, fresh in _in_order(_pieces(plan, blocks), _done(journal), work, places, threads):
            gather.add(piece, records)
            if fresh:
                staging.record({"job": piece.number, "block": piece.block, "done": records})
            if progress:
                progress(piece.work)
        staging.flush()
    check_bases(plan.jobs, gather.tally.inputs)
    return gather.tally


def compute(job: Job, grams: whole_models.Grams | None = None) -> slices.Bytes:
    """Compute one job's result in memory, to look at a single tensor.

    Args:
        grams: The result of :func:`measure` for all jobs of the output, for a method that looks at whole models.

    Raises:
        WeightopsError: the operands hold NaN or Inf, integer tensors differ, or a sparse delta has another base.
    """
    size = dtypes.itemsize(job.dtype)
    out = np.empty(job.count * size, np.uint8)

    def place(job: Job, element: int, data: slices.Bytes) -> None:
        out[element * size : element * size + len(data)] = data

    fill([job], place, threads=1, grams=grams)
    return out


def streamed(job: Job) -> Iterator[tuple[int, slices.Bytes]]:
    """The result of a job without a merge method, some blocks at a time: the first element, and the bytes.

    The next bytes take the place of the last ones in memory.

    Raises:
        WeightopsError: the operands hold NaN or Inf, or integer tensors differ.
    """
    plan = Plan((job,), (), (), (), {})
    buffer = np.empty(plan.buffer_bytes(1, DEFAULT_MEMORY), np.uint8)
    with ExitStack() as stack:
        files = _open_inputs(plan, stack)
        for piece in _pieces(plan, plan.slice_blocks(1, DEFAULT_MEMORY)):
            yield piece.begin, slices.compute(piece, slices.rows_of(piece, buffer), files, allow_nonfinite=False)[0]


def fill(
    jobs: Sequence[Job],
    write: WriteSlice,
    *,
    threads: int,
    memory: int = DEFAULT_MEMORY,
    grams: whole_models.Grams | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Compute jobs without writing files; the bytes are those that :func:`execute` writes.

    Args:
        write: Called with a job, the first element of a slice and its bytes, which are overwritten afterwards; on
            several threads at once, for different slices.
        threads: Number of slices computed at a time.
        memory: Bytes of buffers, all threads together.
        grams: The result of :func:`measure`, if a method looks at whole models.
        allow_nonfinite: Continue if NaN or Inf is found.

    Raises:
        WeightopsError: the operands or the result hold NaN or Inf, integer tensors differ, or a sparse delta was made
            for another base.
    """
    bases = {operand.of for job in jobs for operand in job.operands if isinstance(operand, Scattered)}
    read = {operand for job in jobs for operand in job.operands if operand in bases}
    check_bases(jobs, {base: tensor_digest(base) for base in read if isinstance(base, StoredTensor)})
    plan = Plan(tuple(jobs), (), (), (), {}, allow_nonfinite)
    with ExitStack() as stack:
        work = _filler(plan, _open_inputs(plan, stack), write, grams or {}, threads, memory)
        pieces = _pieces(plan, plan.slice_blocks(threads, memory))
        if threads == 1:
            deque(map(work, pieces), maxlen=0)
            return
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        try:
            for done in [pool.submit(work, piece) for piece in pieces]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _filler(
    plan: Plan,
    files: Mapping[Path, int],
    write: WriteSlice,
    grams: whole_models.Grams,
    threads: int,
    memory: int,
) -> Callable[[JobSlice], None]:
    """The function that :func:`fill` runs on a slice."""
    merge = _merger(plan, files, grams, threads, memory)
    buffers = _each(threads, lambda: np.empty(plan.buffer_bytes(threads, memory), np.uint8))

    def work(piece: JobSlice) -> None:
        if piece.job.whole:
            merge(piece.job, partial(write, piece.job))
            return
        with _lent(buffers) as buffer:
            rows = slices.rows_of(piece, buffer)
            result, _ = slices.compute(piece, rows, files, allow_nonfinite=plan.allow_nonfinite)
            write(piece.job, piece.begin, result)

    return work


def _merger(
    plan: Plan, files: Mapping[Path, int], grams: whole_models.Grams, threads: int, memory: int
) -> Callable[[Job, Callable[[int, slices.Bytes], None]], Record]:
    """A function that computes a whole tensor with a merge method and writes it."""
    rooms = _each(threads, Room)

    def merge(job: Job, write: Callable[[int, slices.Bytes], None]) -> Record:
        from . import merging  # imported here because only merge methods need it

        with _lent(rooms) as room:
            return merging.run(
                job,
                files,
                write,
                memory=memory // threads,
                allow_nonfinite=plan.allow_nonfinite,
                room=room,
                model=_model(job, grams),
            )

    return merge


def _each(threads: int, make: Callable[[], Thing]) -> SimpleQueue[Thing]:
    """One thing for each thread."""
    spare: SimpleQueue[Thing] = SimpleQueue()
    for _ in range(threads):
        spare.put(make())
    return spare


@contextmanager
def _lent(spare: SimpleQueue[Thing]) -> Iterator[Thing]:
    thing = spare.get()
    try:
        yield thing
    finally:
        spare.put(thing)


def measure(jobs: Sequence[Job]) -> whole_models.Grams:
    """Run only the pass over whole models, before :func:`compute` of several tensors of one output.

    Raises:
        WeightopsError: the models hold NaN or Inf.
    """
    measuring = tuple(job for job in jobs if whole_models.looks_at_models(job))
    with ExitStack() as stack:
        files = _open_inputs(Plan(measuring, (), (), (), {}), stack)
        return whole_models.measure(measuring, files, threads=default_threads(), allow_nonfinite=False)


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _worker(
    plan: Plan,
    owned: list[list[StoredTensor]],
    files: Mapping[Path, int],
    outputs: Places,
    grams: whole_models.Grams,
    threads: int,
    memory: int,
) -> Work:
    """The function that threads run on a slice; each thread has a buffer."""
    merge = _merger(plan, files, grams, threads, memory)
    buffers = _each(threads, lambda: np.empty(plan.buffer_bytes(threads, memory), np.uint8))

    def writer(job: Job) -> Callable[[int, slices.Bytes], None]:
        descriptor, begin = outputs[job.name]
        size = dtypes.itemsize(job.dtype)
        return lambda element, data: slices.write_all(descriptor, data, begin + element * size)

    def work(piece: JobSlice) -> list[Record]:
        if piece.job.whole:
            return [merge(piece.job, writer(piece.job))]
        with _lent(buffers) as buffer:
            rows = slices.rows_of(piece, buffer)
            result, squares = slices.compute(piece, rows, files, allow_nonfinite=plan.allow_nonfinite)
            job, size = piece.job, dtypes.itemsize(piece.job.dtype)
            places = [job.operands.index(tensor) for tensor in owned[piece.number]]
            copied = (
                owned[piece.number].index(job.anchor) if job.unchanged and job.anchor in owned[piece.number] else None
            )
            records: list[Record] = []
            for block, span in enumerate(piece.spans):
                lo, hi = span
                digests = [
                    _digest(rows[k], tensor, piece, span) for k, tensor in zip(places, owned[piece.number], strict=True)
                ]
                record: Record = {"in": digests}
                if job.written:
                    record["out"] = block_digest(result[lo * size : hi * size]) if copied is None else digests[copied]
                if job.measure:
                    record["squares"] = squares[block].tolist()
                records.append(record)
            if job.written:
                writer(job)(piece.begin, result)
            return records

    return work


def _digest(row: slices.Bytes, tensor: StoredTensor, piece: JobSlice, span: tuple[int, int]) -> str:
    """The digest of one block of an operand; an empty text past the operand's end (patches may add rows)."""
    size, (lo, hi) = dtypes.itemsize(tensor.dtype), span
    end = min(hi, tensor.count - piece.begin)
    return block_digest(row[lo * size : end * size]) if end > lo else ""


def _pieces(plan: Plan, blocks: int) -> Iterator[JobSlice]:
    for number, job in enumerate(plan.jobs):
        if job.whole and job.count:
            yield JobSlice(number, job, 0, job.blocks)
            continue
        for block in range(0, job.blocks, blocks):
            yield JobSlice(number, job, block, min(blocks, job.blocks - block))


def _done(journal: Journal) -> Done:
    """The journal's records of finished slices, by job and block."""
    slices_done = [entry for entry in journal if "done" in entry]
    return {(e["job"], e["block"] + i): record for e in slices_done for i, record in enumerate(e["done"])}


def _measured(
    plan: Plan,
    files: Mapping[Path, int],
    staging: Staging,
    journal: Journal,
    threads: int,
    progress: ReportProgress | None,
) -> whole_models.Grams:
    """The pass over whole models, for methods that look at them; results in the journal are not measured again."""
    known = {entry["job"]: np.array(entry["gram"]) for entry in journal if "gram" in entry}
    if progress and known:
        progress(sum(whole_models.measuring_work(plan.jobs[number]) for number in known))

    def finished(number: int, job: Job, gram: npt.NDArray[np.float64]) -> None:
        staging.record({"job": number, "gram": gram.tolist()})  # JSON keeps every bit of an fp64 number
        if progress:
            progress(whole_models.measuring_work(job))

    return whole_models.measure(
        plan.jobs, files, threads=threads, allow_nonfinite=plan.allow_nonfinite, known=known, finished=finished
    )


def _model(job: Job, grams: whole_models.Grams) -> npt.NDArray[np.float64] | None:
    """The Gram matrix of the models that a job merges, if its method looks at whole models."""
    return grams.get(job.merge.method) if job.merge is not None else None


def _is_as_recorded(piece: JobSlice, records: list[Record], places: Places) -> bool:
    """Whether the staged file still matches the journal: someone may have changed it after the kill."""
    job = piece.job
    if not job.written:
        return True
    (descriptor, offset), size = places[job.name], dtypes.itemsize(job.dtype)
    digests = []
    for begin in range(piece.begin, piece.end, BLOCK):
        end = min(begin + BLOCK, piece.end)
        digests.append(block_digest(os.pread(descriptor, (end - begin) * size, offset + begin * size)))
    if job.whole:
        return records[0].get("out") == combined_digest(digests)
    return digests == [record.get("out") for record in records]


def _in_order(
    pieces: Iterator[JobSlice], done: Done, work: Work, places: Places, threads: int
) -> Iterator[tuple[JobSlice, list[Record], bool]]:
    """Every slice with its records, in order, and whether it was computed now (or taken from the journal)."""
    waiting: deque[tuple[JobSlice, Future[tuple[list[Record], bool]]]] = deque()

    def head() -> tuple[JobSlice, list[Record], bool]:
        piece, result = waiting.popleft()
        return (piece, *result.result())

    def finished(piece: JobSlice, recorded: list[Record]) -> tuple[list[Record], bool]:
        if recorded and _is_as_recorded(piece, recorded, places):
            return recorded, False
        return work(piece), True

    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                records = 1 if piece.job.whole else piece.blocks  # a job computed as a whole has one record
                recorded = [done[key] for i in range(records) if (key := (piece.number, piece.block + i)) in done]
                waiting.append((piece, pool.submit(finished, piece, recorded if len(recorded) == records else [])))
                while waiting and (len(waiting) > _AHEAD or waiting[0][1].done()):
                    yield head()
            while waiting:
                yield head()
        finally:
            pool.shutdown(cancel_futures=True)


def allocate(plan: Plan, staging: Staging) -> dict[str, tuple[int, int]]:
    """Every output file at its full size; each tensor's descriptor and offset."""
    places: dict[str, tuple[int, int]] = {}
    for file in plan.files:
        descriptor = staging.allocate(file.name, file.head, file.size)
        places.update({name: (descriptor, offset) for name, offset in file.offsets.items()})
    return places


def _open_inputs(plan: Plan, stack: ExitStack) -> dict[Path, int]:
    """Every input file, read only; the limit on open files is raised as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files: dict[Path, int] = {}
    for path in dict.fromkeys(tensor.file for job in plan.jobs for tensor in stored(job)):
        try:
            files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightopsError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        stack.callback(os.close, files[path])
    return files
