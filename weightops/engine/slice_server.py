"""A plan's slices computed in a process of a cluster, into staged files that it opens by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResumableError, WeightopsError, at
from ..io.output_lock import open_private
from ..ops.plugin import load_plugin
from .jobs import JobSlice
from .plan import Plan
from .slice_work import Computed, open_inputs, torch_for, workers_here
from .tally import Record, owned_operands

if TYPE_CHECKING:
    from .merging import Gram


class SliceServer:
    """One worker of a cluster: it computes one slice at a time, with one thread.

    Args:
        folder: The staged folder, in which every file has its size already.
        memory: Bytes of buffers.
        working_folder: That of the run: names of inputs may be relative to it.
        plugins: Files with merge methods of the user's own.
    """

    def __init__(self, plan: Plan, folder: str, memory: int, working_folder: str, plugins: Sequence[Path]) -> None:
        self._plan, self._folder, self._memory = plan, Path(folder), memory
        self._working_folder, self._plugins = working_folder, plugins

    def open(self) -> None:
        """Open every input and every staged file.

        Raises:
            ResumableError: a file cannot be opened, or a plugin cannot be loaded, on this node.
        """
        try:
            self._open()
        except (WeightopsError, OSError) as error:
            problems = error.problems if isinstance(error, WeightopsError) else (f"{error.filename}: {error.strerror}",)
            node = f"executor: Ray node {os.uname().nodename}"
            raise ResumableError(*(at(node, problem) for problem in problems)) from error

    def _open(self) -> None:
        os.chdir(self._working_folder)
        for plugin in self._plugins:
            load_plugin(plugin)
        plan, kept_open = self._plan, ExitStack()  # until the process ends
        kept_open.enter_context(torch_for(plan))
        inputs = open_inputs(plan, kept_open)
        outputs = {file.name: open_private(self._folder / file.name, os.O_RDWR) for file in plan.files}
        places = {name: (outputs[file.name], offset) for file in plan.files for name, offset in file.offsets.items()}
        self._staged_files = {name: descriptor for name, (descriptor, _) in places.items()}
        self._workers = workers_here(plan, owned_operands(plan), inputs, places, 1, self._memory)

    def gram_of(self, number: int) -> Gram:
        """Measure a job, by its number, for a method that looks at whole models."""
        return self._workers.gram_of(number)

    def compute(self, number: int, block: int, blocks: int, recorded: list[Record], model: Gram | None) -> Computed:
        """Compute a slice, by its job's number, its first block and its blocks. It is then on the disk."""
        job = self._plan.jobs[number]
        records, fresh = self._workers.compute(JobSlice(number, job, block, blocks), recorded, model)
        if fresh:
            for descriptor in {self._staged_files[name] for name in job.outputs}:
                os.fdatasync(descriptor)
        return records, fresh
