"""The pass before a merge for methods that look at whole models: it sums the Gram matrix of the models.

The inner products are summed in fp64, first over the blocks of each tensor, then over the tensors in the order of the
plan. So the sum does not depend on the number of threads or on interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..errors import WeightopsError
from .jobs import Job

if TYPE_CHECKING:
    from .merging import Gram

#: For each method, the Gram matrix of its models over all tensors that the plan merges with it.
Grams = Mapping[str, "Gram"]


def looks_at_models(job: Job) -> bool:
    """Whether a job can only be computed once the whole models have been measured."""
    if job.merge is None or not job.count:
        return False
    from ..ops.registry import find  # imported here because only merges need the methods

    return find(job.merge.method).reads == "model"


def measuring_work(job: Job) -> int:
    """Bytes read to measure a job, as progress counts them."""
    return job.count * job.widest * len(job.operands)


def problems(jobs: Iterable[Job]) -> Iterator[str]:
    """Problems of a plan whose tensors are not merged from the same number of models."""
    first: dict[str, Job] = {}
    for job in jobs:
        if job.merge is None or not looks_at_models(job):
            continue
        other = first.setdefault(job.merge.method, job)
        if other.merge is not None and len(other.merge.inputs) != len(job.merge.inputs):
            yield (
                f"{job.name}: {job.merge.method} looks at whole models, and merges {len(job.merge.inputs)} here but "
                f"{len(other.merge.inputs)} in {other.name}; merge the same models for all tensors"
            )


def measure(
    jobs: Iterable[Job],
    gram_of: Callable[[int], Gram],
    *,
    threads: int,
    known: Mapping[int, Gram] | None = None,
    finished: Callable[[int, Job, Gram], None] = lambda number, job, gram: None,
) -> Grams:
    """Sum the Gram matrices of the methods that look at whole models.

    Args:
        jobs: Every job of the plan; jobs of other methods are skipped.
        gram_of: Measures a job, by its number in ``jobs``; called by several threads at once.
        threads: Number of tensors measured at a time.
        known: The results of an earlier, killed run, by number of the job.
        finished: Called with each newly measured job, in order.

    Raises:
        WeightopsError: an input contains NaN or Inf, even if those are allowed: they give no coefficient.
    """
    measuring = [(number, job) for number, job in enumerate(jobs) if looks_at_models(job)]
    if not measuring:
        return {}
    known = known or {}
    grams: dict[str, Gram] = {}
    with ThreadPoolExecutor(threads) as pool:
        try:
            measured = [(n, job, known[n] if n in known else pool.submit(gram_of, n)) for n, job in measuring]
            for number, job, result in measured:
                gram = result.result() if isinstance(result, Future) else result
                if isinstance(result, Future):
                    finished(number, job, gram)
                _add(grams, job, gram)
        finally:
            pool.shutdown(cancel_futures=True)
    return grams


def _add(grams: dict[str, Gram], job: Job, gram: Gram) -> None:
    assert job.merge is not None
    if not np.isfinite(gram).all():
        raise WeightopsError(
            f"{job.name}: {job.merge.method} looks at whole models, and one of them holds NaN or Inf here; "
            "repair the model"
        )
    grams[job.merge.method] = grams.get(job.merge.method, np.zeros_like(gram)) + gram
