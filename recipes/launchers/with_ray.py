"""Parts trained at once as tasks of a Ray cluster, over a filesystem that its machines share.

A part whose worker dies runs again, from its last checkpoint, and no other part does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from weightops.engine.ray_cluster import check_nodes, connected, first_sentence, last_line
from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Count, NotNegative
from weightops.recipes.parts.part_logs import PartLogs, last_lines, log_of
from weightops.recipes.parts.part_training import (
    Ended,
    Launcher,
    PartTraining,
    TrainAll,
    TrainPart,
    attempt_apart,
    begin_run_folder,
)

COMPARED: Final = ("weightops", "torch", "transformers")
"""Packages that decide what a training computes."""
_LOOK_SECONDS: Final = 0.5
_PLACE: Final = "launch"


@dataclass(frozen=True)
class WithRay(Launcher):
    """Train the parts at once as tasks of a Ray cluster. Its machines share the folders that are read and written.

    Attributes:
        address: Of the cluster, ``host:port`` or ``auto``; by default RAY_ADDRESS, and without that a cluster of this
            machine alone.
        cpus: Processors of each part, and the threads that it computes with.
        gpus: GPUs of each part; by default one where the cluster has any.
        tries: How often a part may begin; after each death of its worker it begins again at its last checkpoint.
    """

    address: str | None = None
    cpus: Count = 1
    gpus: NotNegative | None = None
    tries: Count = 3

    @contextmanager
    def ready(self, out: Path, models: Sequence[Path]) -> Iterator[TrainAll]:
        """Possible where every node that can take a part has our versions and sees our folders."""
        with connected(self.address, _PLACE) as ray:
            needs = {"CPU": self.cpus, "GPU": self._gpus(ray)}
            nodes = [node for node in ray.nodes() if node["Alive"]]
            able = [node for node in nodes if all(node["Resources"].get(n, 0) >= most for n, most in needs.items())]
            if not able:
                wanted = " and ".join(f"{most} {name}s" for name, most in needs.items() if most)
                raise WeightopsError(f"{_PLACE}: no node of the Ray cluster has {wanted} for a part; ask for fewer")
            check_nodes(ray, able, _PLACE, packages=COMPARED, out=out, inputs=models)
            yield partial(self._train, ray)

    def _gpus(self, ray: Any) -> int:
        return int(bool(ray.cluster_resources().get("GPU"))) if self.gpus is None else self.gpus

    def _train(self, ray: Any, trainings: Sequence[PartTraining], train_part: TrainPart) -> dict[int, str]:
        task = ray.remote(_on_worker).options(num_cpus=self.cpus, num_gpus=self._gpus(ray), max_retries=0)

        def begun(training: PartTraining) -> Any:
            return task.remote(train_part, training, os.getcwd(), self.cpus)

        for training in trainings:
            begin_run_folder(training)
        problems: dict[int, str | None] = {}
        with PartLogs(trainings) as logs:
            running = {begun(training): (training, 1) for training in trainings}
            try:
                while running:
                    done, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
                    logs.show()
                    for reference in done:
                        training, tries = running.pop(reference)
                        ended, death = _ended(ray, reference, training)
                        if death is None:
                            problems[training.number] = ended.problem()
                        elif tries < self.tries:
                            logs.tell(f"{training.title}: its worker died ({death}); it begins again, try {tries + 1}")
                            running[begun(training)] = training, tries + 1
                            continue
                        else:
                            problems[training.number] = _died(training, tries, death)
                        logs.ended()
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)
        return {number: problem for number, problem in problems.items() if problem is not None}


def _on_worker(train_part: TrainPart, training: PartTraining, folder: str, threads: int) -> Ended:
    """Train a part in a worker of the cluster, in the folder and with the threads of the run."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(threads)
    with log_of(training).open("a", buffering=1) as log, redirect_stderr(log), redirect_stdout(log):
        print(f"{training.title}: process {os.getpid()} of {os.uname().nodename}")
        return attempt_apart(train_part, training)


def _ended(ray: Any, reference: Any, training: PartTraining) -> tuple[Ended, str | None]:
    """How a task ended, and of what its worker died, if it did."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:
        return Ended((f"{training.title}: {last_line(error)}",), others_go_on=True), None
    except ray.exceptions.RayError as error:
        return Ended(), first_sentence(error)


def _died(training: PartTraining, tries: int, death: str) -> str:
    log = log_of(training)
    return f"{training.title}: its worker died {tries} times ({death}); {log} ends: {last_lines(log)}"
