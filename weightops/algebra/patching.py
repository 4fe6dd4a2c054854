"""A loaded model that takes on the weights of one plan after another, without files, and gets its own back.

The model's tensors are never written to. Each gets a second memory, which the engine fills; while the model wears other
weights its parameters point there, and afterwards they point to their own memory again. So what comes back is the very
same memory, also after an error or Ctrl-C, and a model whose weights are pages of its file stays that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.execute import default_threads, fill, measure
from ..engine.jobs import Job
from ..engine.plan import DEFAULT_MEMORY, Plan
from ..engine.slices import Bytes
from ..engine.torch_threads import one_torch_thread
from ..engine.whole_models import looks_at_models
from ..errors import WeightopsError, short
from .tensor_jobs import torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class _Worn:
    """A tensor of the model under one of its names, and the memory for other weights.

    Attributes:
        tensor: The parameter or buffer; a tied one has several names.
        original: Its own memory.
        memory: As large, in the dtype in which the model computes; shared by the names of a tied tensor.
    """

    tensor: torch.Tensor
    original: torch.Tensor
    memory: torch.Tensor


class PatchedModel:
    """A loaded model of transformers that can wear other weights of the same architecture.

    Memory: as much as the model has, once, in ``dtype``; allocated when weights are first worn. Work: only the tensors
    whose job differs from the one that was computed last.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        """``dtype``: of the worn weights in memory; by default that of each of the model's tensors.

        Weights are rounded to the dtype that a file would have and widened from there.
        """
        self.model = model
        self._dtype = dtype
        self._worn: dict[str, _Worn] = {}
        self._held: dict[str, Job] = {}

    @contextmanager
    def wearing(self, plan: Plan, *, threads: int | None = None, memory: int = DEFAULT_MEMORY) -> Iterator[Any]:
        """The model with the weights that executing the plan would write, for the length of the block.

        Args:
            plan: Of an output with the model's tensors; what the model does not have is not computed.
            threads: Slices computed at a time; by default one for each processor.
            memory: Bytes of the engine's buffers.

        Raises:
            WeightopsError: problems of the plan, tensors that do not fit the model, NaN or Inf, or two weights for one
                tied tensor.
        """
        jobs = self.fitting(plan)
        try:
            self._fill(jobs, plan, default_threads() if threads is None else threads, memory)
            for worn in self._worn.values():
                worn.tensor.data = worn.memory
            yield self.model
        finally:
            for worn in self._worn.values():
                worn.tensor.data = worn.original

    def fitting(self, plan: Plan) -> dict[str, Job]:
        """The plan's jobs for the model's tensors, by name; nothing is computed.

        Raises:
            WeightopsError: problems of the plan, or a tensor of the model is not in it, or has another shape there.
        """
        plan.check()
        tensors = self.model.state_dict(keep_vars=True)
        written = {job.name: job for job in plan.jobs if job.written}
        jobs = {name: written[name] for name in tensors if name in written}
        stored = {_place(tensors[name]) for name in jobs}
        if missing := [name for name, tensor in tensors.items() if _place(tensor) not in stored]:
            raise WeightopsError(
                f"{short(missing[0])}: in the loaded model, but not among these weights; either they are of another "
                "architecture, or transformers renames the tensor while loading; write them to a folder and load that"
            )
        for name, job in jobs.items():
            if job.shape != tuple(tensors[name].shape):
                raise WeightopsError(
                    f"{short(name)}: shape {job.shape} in the merge, {tuple(tensors[name].shape)} in the loaded model; "
                    "the models must share an architecture"
                )
        return jobs

    def _fill(self, jobs: Mapping[str, Job], plan: Plan, threads: int, memory: int) -> None:
        """Compute the jobs whose results are not in memory already."""
        self._allocate()
        chosen, others = self._by_tie(jobs)
        changed = [job for job in chosen if self._held.get(job.name) != job]
        if any(map(looks_at_models, changed)):  # their results depend on all tensors of the merge
            changed = chosen
        for job in changed:
            self._held.pop(job.name, None)
        with one_torch_thread():
            grams = measure([job for job in plan.jobs if job.written]) if any(map(looks_at_models, changed)) else None
            compute = partial(fill, threads=threads, memory=memory, grams=grams, allow_nonfinite=plan.allow_nonfinite)
            compute(changed, self._write)
            self._held.update({job.name: job for job in changed})
            compute(others, self._compare)

    def _allocate(self) -> None:
        """Memory for each tensor, one for all names of a tied tensor."""
        import torch

        if self._worn:
            return
        tensors = self.model.state_dict(keep_vars=True)
        memory: dict[Any, torch.Tensor] = {}
        for name, tensor in tensors.items():
            place = _place(tensor)
            if place not in memory:
                wide = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
                memory[place] = torch.empty(tensor.shape, dtype=wide, device=tensor.device)
            self._worn[name] = _Worn(tensor, tensor.data, memory[place])

    def _by_tie(self, jobs: Mapping[str, Job]) -> tuple[list[Job], list[Job]]:
        """One job for each memory, and the jobs of further names of the same memory."""
        first: dict[int, str] = {}
        for name in jobs:
            first.setdefault(id(self._worn[name].memory), name)
        chosen = set(first.values())
        return [jobs[name] for name in first.values()], [job for name, job in jobs.items() if name not in chosen]

    def _write(self, job: Job, element: int, data: Bytes) -> None:
        values = _values(job, data)
        self._worn[job.name].memory.view(-1)[element : element + len(values)].copy_(values)

    def _compare(self, job: Job, element: int, data: Bytes) -> None:
        """Refuse other weights than those written under the tied tensor's first name."""
        import torch

        values = _values(job, data)
        memory = self._worn[job.name].memory.view(-1)[element : element + len(values)]
        if not torch.equal(values.to(memory), memory):
            raise WeightopsError(
                f"{short(job.name)}: the loaded model ties it to another tensor, but here the two differ; the models "
                "must agree on tie_word_embeddings"
            )


def _values(job: Job, data: Bytes) -> torch.Tensor:
    import torch

    return torch.from_numpy(data).view(torch_dtype(job.dtype))


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that are one memory: tied ones, whether one object or two."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), id(tensor) if not tensor.numel() else 0
