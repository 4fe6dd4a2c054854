"""Executes a plan: reads slices with pread into reused buffers, computes them, and writes them in place.

Workers, threads of this process or processes of a cluster, take slices in order, and results are collected in order, so
digests, sums and the first error do not depend on how many there are. Memory is workers x slice buffers, independent of
the model's size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..io.safetensors import StoredTensor
from ..io.staging import Staging
from . import slices, whole_models
from .jobs import Job, JobSlice, Scattered
from .plan import DEFAULT_MEMORY, Plan
from .slice_work import (
    Computed,
    Elsewhere,
    Finished,
    Resuming,
    Todo,
    Workers,
    WriteSlice,
    filler,
    measurer,
    model_of,
    open_inputs,
    torch_for,
    workers_here,
)
from .tally import Gather, Record, Tally, check_bases, owned_operands, tensor_digest

ReportProgress = Callable[[int], None]
Done = Mapping[tuple[int, int], Record]
Journal = Sequence[Mapping[str, Any]]
_AHEAD = 256  # slices that may wait for an earlier one: one worker may have a whole embedding to merge


def execute(
    plan: Plan,
    staging: Staging,
    *,
    threads: int,
    memory: int = DEFAULT_MEMORY,
    progress: ReportProgress | None = None,
    elsewhere: Elsewhere | None = None,
) -> Tally:
    """Compute every job of a plan into the staged files.

    Args:
        threads: Number of slices computed at a time.
        memory: Bytes of buffers, all threads together; those of each worker elsewhere.
        progress: Called with the bytes that each finished slice read and wrote.
        elsewhere: Opens the workers that compute; by default they are threads of this process.

    Raises:
        WeightopsError: the plan has problems, or the data hold NaN or Inf, or integer tensors differ.
    """
    plan.check()
    owned = owned_operands(plan)
    gather = Gather(owned)
    gather.begin(plan)
    journal = staging.done()
    places = allocate(plan, staging)

    def note(finished: Finished) -> None:
        piece, records, fresh = finished
        if fresh:
            staging.record({"job": piece.number, "block": piece.block, "done": records})

    with ExitStack() as stack:
        if elsewhere is None:
            stack.enter_context(torch_for(plan))
            workers = workers_here(plan, owned, open_inputs(plan, stack), places, threads, memory)
        else:
            workers = stack.enter_context(elsewhere(plan, staging.model, memory))
        grams = _measured(plan, workers, staging, journal, progress)

        def work(piece: JobSlice, recorded: list[Record]) -> Computed:
            return workers.compute(piece, recorded, model_of(piece.job, grams))

        todo = _todo(_pieces(plan, workers.blocks), _done(journal))
        for finished in stack.enter_context(closing(_by_threads(todo, work, workers.count, note))):
            note(finished)
            gather.add(finished.piece, finished.records)
            if progress:
                progress(finished.piece.work)
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
        files = open_inputs(plan, stack)
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
        work = filler(plan, open_inputs(plan, stack), write, grams or {}, threads, memory)
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


def measure(jobs: Sequence[Job]) -> whole_models.Grams:
    """Run only the pass over whole models, before :func:`compute` of several tensors of one output.

    Raises:
        WeightopsError: the models hold NaN or Inf.
    """
    measuring = tuple(job for job in jobs if whole_models.looks_at_models(job))
    with ExitStack() as stack:
        plan, threads = Plan(measuring, (), (), (), {}), default_threads()
        gram_of = measurer(plan, open_inputs(plan, stack), threads)
        return whole_models.measure(measuring, gram_of, threads=threads)


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _pieces(plan: Plan, blocks: int) -> Iterator[JobSlice]:
    for number, job in enumerate(plan.jobs):
        if job.whole and job.count:
            yield JobSlice(number, job, 0, job.blocks)
            continue
        yield from JobSlice(number, job, 0, job.blocks).parts(blocks)


def _done(journal: Journal) -> Done:
    """The journal's records of finished slices, by job and block."""
    slices_done = [entry for entry in journal if "done" in entry]
    return {(e["job"], e["block"] + i): record for e in slices_done for i, record in enumerate(e["done"])}


def _measured(
    plan: Plan, workers: Workers, staging: Staging, journal: Journal, progress: ReportProgress | None
) -> whole_models.Grams:
    """The pass over whole models, for methods that look at them; results in the journal are not measured again."""
    known = {entry["job"]: np.array(entry["gram"]) for entry in journal if "gram" in entry}
    if progress and known:
        progress(sum(whole_models.measuring_work(plan.jobs[number]) for number in known))

    def finished(number: int, job: Job, gram: npt.NDArray[np.float64]) -> None:
        staging.record({"job": number, "gram": gram.tolist()})  # JSON keeps every bit of an fp64 number
        if progress:
            progress(whole_models.measuring_work(job))

    return whole_models.measure(plan.jobs, workers.gram_of, threads=workers.count, known=known, finished=finished)


def _by_threads(
    todo: Iterable[Todo], work: Resuming, threads: int, note: Callable[[Finished], None]
) -> Generator[Finished, None, None]:
    """Every slice in order; each thread computes one at a time, or waits while a worker elsewhere does.

    Args:
        note: Called with slices that are finished, but not yielded, because an earlier one failed.
    """
    waiting: deque[tuple[JobSlice, Future[Computed]]] = deque()

    def head() -> Finished:
        piece, result = waiting.popleft()
        return Finished(piece, *result.result())

    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece, recorded in todo:
                waiting.append((piece, pool.submit(work, piece, recorded)))
                while waiting and (len(waiting) > _AHEAD or waiting[0][1].done()):
                    yield head()
            while waiting:
                yield head()
        finally:
            pool.shutdown(cancel_futures=True)
            for piece, result in waiting:
                if not result.cancelled() and result.exception() is None:
                    note(Finished(piece, *result.result()))


def _todo(pieces: Iterable[JobSlice], done: Done) -> Iterator[Todo]:
    """Every slice with its records in the journal; without them if one is missing."""
    for piece in pieces:
        records = 1 if piece.job.whole else piece.blocks  # a job computed as a whole has one record
        recorded = [done[key] for i in range(records) if (key := (piece.number, piece.block + i)) in done]
        yield piece, recorded if len(recorded) == records else []


def allocate(plan: Plan, staging: Staging) -> dict[str, tuple[int, int]]:
    """Every output file at its full size; each tensor's descriptor and offset."""
    places: dict[str, tuple[int, int]] = {}
    for file in plan.files:
        descriptor = staging.allocate(file.name, file.head, file.size)
        places.update({name: (descriptor, offset) for name, offset in file.offsets.items()})
    return places
