"""Writes the tensors of a plan in whatever order they are merged, part by part, and resumes after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .. import dtypes
from ..engine.execute import allocate, compute
from ..engine.jobs import BLOCK, Job
from ..engine.plan import Plan, stored
from ..engine.slices import Bytes, write_all
from ..engine.tally import Tally, block_digest, combined_digest, tensor_digest
from ..errors import WeightopsError
from ..io.staging import Staging
from .sampled_model import MergedParts


class PartWriter:
    """The staged files of a plan whose jobs say what each tensor is where data say nothing.

    Args:
        plan: Its jobs make the tensors that no part brings.
        staging: The staged output.
        names: The tensors of each part, by the part's number.
    """

    def __init__(self, plan: Plan, staging: Staging, names: Mapping[int, Iterable[str]]) -> None:
        self._jobs = {job.name: job for job in plan.jobs}
        self._staging, self._names = staging, {number: tuple(part) for number, part in names.items()}
        self._places = allocate(plan, staging)
        self.tally = Tally()
        self.done = frozenset(self._finished())

    def write(self, parts: MergedParts) -> None:
        """Write merged parts as they come, then the tensors of no part.

        Raises:
            WeightopsError: a merged tensor holds NaN or infinity.
        """
        for number, merged in parts:
            digests = {name: self._written(self._jobs[name], merged.get(name)) for name in self._names[number]}
            self.tally.outputs.update(digests)
            self._staging.record({"part": number, "done": digests})
            self._staging.flush()
            del merged  # before the next part is loaded
        for name, job in self._jobs.items():
            if name not in self.tally.outputs:
                self.tally.outputs[name] = self._written(job, None)
        for tensor in dict.fromkeys(tensor for job in self._jobs.values() for tensor in stored(job)):
            self.tally.inputs[tensor] = tensor_digest(tensor)

    def _finished(self) -> Iterator[int]:
        """The parts that an earlier run has written and that are still as it wrote them."""
        for entry in self._staging.done():
            digests = entry["done"]
            if all(self._digest(self._jobs[name]) == digest for name, digest in digests.items()):
                self.tally.outputs.update(digests)
                yield entry["part"]

    def _written(self, job: Job, merged: Tensor | None) -> str:
        """Write a tensor; its digest."""
        descriptor, begin = self._places[job.name]
        data = compute(job) if merged is None else _as_bytes(job, merged)
        step = BLOCK * dtypes.BITS[job.dtype] // 8
        digests = []
        for start in range(0, len(data), step):
            write_all(descriptor, data[start : start + step], begin + start)
            digests.append(block_digest(data[start : start + step]))
        return combined_digest(digests)

    def _digest(self, job: Job) -> str:
        """The digest of a tensor in the staged file."""
        descriptor, begin = self._places[job.name]
        step, size = BLOCK * dtypes.BITS[job.dtype] // 8, dtypes.nbytes(job.dtype, job.shape)
        blocks = (os.pread(descriptor, min(step, size - at), begin + at) for at in range(0, size, step))
        return combined_digest(map(block_digest, blocks))


def _as_bytes(job: Job, merged: Tensor) -> Bytes:
    """A merged tensor, rounded once to the dtype of its job."""
    rounded = merged.detach().to("cpu", getattr(torch, dtypes.TO_TORCH[job.dtype]))
    if tuple(rounded.shape) != job.shape:
        raise WeightopsError(f"{job.name}: merged to shape {tuple(rounded.shape)}, stored as {job.shape}")
    if not torch.isfinite(rounded).all():
        raise WeightopsError(f"{job.name}: the merged tensor is not finite in {dtypes.TO_TORCH[job.dtype]}")
    return rounded.contiguous().view(torch.uint8).numpy().reshape(-1)
