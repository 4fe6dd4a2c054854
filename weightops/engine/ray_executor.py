"""A plan computed by the workers of a Ray cluster, over a filesystem that its machines share.

The driver keeps the staged folder, its lock and the journal, and puts the output in its place. Each worker gets the
plan once, and then one slice at a time; it reads inputs and writes staged files itself, so no weights go over Ray.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from ..errors import Message, Remedy, ResumableError, WeightopsError, attempt_all
from ..io.progress import say
from ..ops.plugin import plugin_of
from ..ops.registry import find
from .jobs import JobSlice
from .plan import Plan
from .ray_cluster import check_nodes, connected, first_sentence
from .slice_server import SliceServer
from .slice_work import Computed, Elsewhere, Workers
from .tally import Record

if TYPE_CHECKING:
    from .merging import Gram

COMPARED: Final = ("weightops", "numpy", "numba", "torch")
"""Packages that decide an output's bytes."""
START_SECONDS = 120.0
"""How long a worker may take to start: the cluster may be busy, or may have lost a node."""
_PLACE: Final = "executor"


@dataclass(frozen=True)
class RayExecutor:
    """Computes on a Ray cluster, whose machines share a filesystem. The output is that of one process, byte for byte.

    Attributes:
        address: Of the cluster, ``host:port`` or ``auto``; by default RAY_ADDRESS, and without that a cluster of this
            machine alone.
        workers: Processes, each with one thread on one processor; by default one for each processor of the cluster.
        tries: How often a slice may begin; after each death of its worker another worker begins it again.
        slice_blocks: Blocks of 2^18 elements in a slice of a linear combination. A worker that dies loses one slice.
        tell: Called with a line when a worker has died.
    """

    address: str | None = None
    workers: int | None = None
    tries: int = 3
    slice_blocks: int = 64
    tell: Callable[[str], None] = say

    def __str__(self) -> str:
        """Where it computes, for people."""
        workers = "one worker for each processor" if self.workers is None else f"{self.workers} worker(s)"
        address = self.address or os.environ.get("RAY_ADDRESS")
        return f"{workers} of {f'the Ray cluster at {address}' if address else 'a Ray cluster started on this machine'}"

    @contextmanager
    def ready(self, plan: Plan, out: Path) -> Iterator[Elsewhere]:
        """Connect to the cluster, and check that every node has our versions and sees our files.

        Raises:
            WeightopsError: the cluster does not answer or is too small, or a node differs from this machine.
        """
        plugins = self._checked(plan)
        with connected(self.address, _PLACE, self.workers) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
            processors = sum(int(node["Resources"]["CPU"]) for node in nodes)
            count = self.workers or processors
            if not 0 < count <= processors:
                what = f"{_PLACE}: the Ray cluster has {processors} processors, too few for {max(count, 1)} workers"
                raise WeightopsError(Message(what, Remedy("ask for fewer {}", "workers")))
            check_nodes(ray, nodes, _PLACE, packages=COMPARED, out=out, inputs=plan.inputs)
            yield partial(self._working, ray, count, plugins)

    def _checked(self, plan: Plan) -> tuple[Path, ...]:
        """The plugins that the workers must load.

        Raises:
            WeightopsError: the settings, or jobs that cannot be computed on a cluster.
        """
        settings = {
            "workers": 1 if self.workers is None else self.workers,
            "tries": self.tries,
            "slice_blocks": self.slice_blocks,
        }
        problems = [
            f"{_PLACE}: {name} must be a whole number, at least 1; found {value!r}"
            for name, value in settings.items()
            if not isinstance(value, int) or value < 1
        ]
        merges = [job.merge for job in plan.jobs if job.merge is not None]
        if devices := sorted({merge.device for merge in merges} - {"cpu"}):
            what = f"{_PLACE}: the workers of a Ray cluster compute on CPUs, and not on {devices[0]}"
            problems.append(Message(what, Remedy("choose {}", "device", "cpu")))
        if problems:
            raise WeightopsError(*problems)
        methods = [find(name) for name in dict.fromkeys(merge.method for merge in merges)]
        files = attempt_all(partial(plugin_of, method) for method in methods)
        return tuple(dict.fromkeys(file for file in files if file is not None))

    @contextmanager
    def _working(
        self, ray: Any, count: int, plugins: Sequence[Path], plan: Plan, folder: Path, memory: int
    ) -> Iterator[Workers]:
        """Workers that have the plan and have opened its files; they end with the block."""
        settings = (ray.put(plan), str(folder.absolute()), memory, os.getcwd(), plugins)
        crew = _Crew(ray, settings, count, self.tries, self.tell)

        def gram_of(number: int) -> Gram:
            matrix: Gram = crew.call(plan.jobs[number].name, "gram_of", number)
            return matrix

        def compute(piece: JobSlice, recorded: list[Record], model: Gram | None) -> Computed:
            arguments = (piece.number, piece.block, piece.blocks, recorded, model)
            computed: Computed = crew.call(piece.job.name, "compute", *arguments)
            return computed

        try:
            crew.start()
            yield Workers(count, self.slice_blocks, gram_of, compute)
        finally:
            crew.end()


class _Crew:
    """The workers of one run. Each is lent to one thread at a time, and one that dies is replaced.

    Args:
        settings: What each :class:`.SliceServer` gets.
        tries: How often a call may begin.
    """

    def __init__(self, ray: Any, settings: Sequence[Any], count: int, tries: int, tell: Callable[[str], None]) -> None:
        self._ray, self._settings, self._count, self._tries, self._tell = ray, settings, count, tries, tell
        self._server = ray.remote(SliceServer).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        self._started: list[Any] = []
        self._deaths: list[str] = []
        self._not_replaced = itertools.count(1)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        """Workers that no thread is using; ``None`` once no worker is left."""

    def start(self) -> None:
        """Start all workers.

        Raises:
            ResumableError: one does not start, or cannot open a file.
        """
        opening = dict(self._begun() for _ in range(self._count))
        opened, late = self._ray.wait(list(opening), num_returns=self._count, timeout=START_SECONDS)
        for reference in opened:
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except self._ray.exceptions.RayError as error:
                raise ResumableError(
                    f"{_PLACE}: a worker died while it started ({first_sentence(error)}); check the Ray cluster, then "
                    "rerun to resume"
                ) from error
            self._idle.put(opening[reference])
        if late:
            what = f"{_PLACE}: {len(late)} of {self._count} workers did not start in {START_SECONDS:g} s"
            wait = Remedy("rerun to resume when the Ray cluster has free processors")
            raise ResumableError(Message(what, wait, Remedy("ask for fewer {}", "workers")))

    def call(self, job: str, method: str, *arguments: Any) -> Any:
        """Let an idle worker do something; if it dies, another one.

        Args:
            job: Name of the job that it is for, for messages.

        Raises:
            ResumableError: workers died as often as the call may begin, or none is left.
            Exception: what the worker raised.
        """
        for tries in itertools.count(1):
            worker = self._borrowed()
            try:
                result = self._ray.get(getattr(worker, method).remote(*arguments))
            except self._ray.exceptions.RayTaskError as error:
                self._idle.put(worker)
                raise _cause(error) from error
            except self._ray.exceptions.RayError as error:
                death = first_sentence(error)
                self._replace(worker)
                if tries == self._tries:
                    raise _given_up(job, tries, death) from error
                self._deaths.append(death)
                self._tell(f"{_PLACE}: {job}: a worker died ({death}); another one computes its slice, try {tries + 1}")
            else:
                self._idle.put(worker)
                return result

    def end(self) -> None:
        """End all workers, and tell what their deaths have cost."""
        for worker in self._started:
            self._ray.kill(worker)
        if self._deaths:
            self._tell(f"{_PLACE}: slices computed again after deaths of their workers: {len(self._deaths)}")

    def _begun(self) -> tuple[Any, Any]:
        """A reference to the opening of a new worker, and the worker."""
        worker = self._server.remote(*self._settings)
        self._started.append(worker)
        return worker.open.remote(), worker

    def _borrowed(self) -> Any:
        worker = self._idle.get()
        if worker is None:
            self._idle.put(None)  # for the other threads
            raise ResumableError(f"{_PLACE}: no worker is left; check the Ray cluster, then rerun to resume")
        return worker

    def _replace(self, dead: Any) -> None:
        """Start a worker in place of a dead one; if the cluster has no room for it, the run continues with fewer."""
        self._ray.kill(dead)  # it may live on where only the connection to it was lost
        reference, worker = self._begun()
        opened, _ = self._ray.wait([reference], timeout=START_SECONDS)
        try:
            self._ray.get(opened)
        except self._ray.exceptions.RayError:
            opened = []
        if opened:
            self._idle.put(worker)
            return
        self._ray.kill(worker)
        if next(self._not_replaced) == self._count:
            self._idle.put(None)


def _cause(error: Any) -> Exception:
    """What a worker raised, without Ray's account of where."""
    cause: Exception = error.cause if isinstance(error.cause, Exception) else error
    return cause


def _given_up(job: str, tries: int, death: str) -> ResumableError:
    what = f"{_PLACE}: {job}: its worker died {tries} times ({death})"
    memory = Remedy("rerun to resume when the machines have more memory")
    return ResumableError(Message(what, memory, Remedy("rerun with fewer {}", "workers")))
