"""Parts trained at once as tasks of a Ray cluster, over a filesystem that its machines share.

A part whose worker dies runs again, from its last checkpoint, and no other part does. Where no cluster is named, one is
started on this machine for the length of the run: without Ray's usage report, and with no port open to others.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

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
from weightops.rows.encode import say

COMPARED: Final = ("weightops", "torch", "transformers")
"""Packages that decide what a training computes."""
_LOOK_SECONDS, _REACH_SECONDS, _ANSWER_SECONDS = 0.5, 10.0, 120.0
_PRIVATE: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: without it, Ray listens on the local host alone
}


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
        with _cluster(self.address) as ray:
            needs = {"CPU": self.cpus, "GPU": self._gpus(ray)}
            nodes = [node for node in ray.nodes() if node["Alive"]]
            able = [node for node in nodes if all(node["Resources"].get(n, 0) >= most for n, most in needs.items())]
            if not able:
                wanted = " and ".join(f"{most} {name}s" for name, most in needs.items() if most)
                raise WeightopsError(f"launch: no node of the Ray cluster has {wanted} for a part; ask for fewer")
            _check_nodes(ray, able, out, models)
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
        return Ended((f"{training.title}: {_last(error)}",), others_go_on=True), None
    except ray.exceptions.RayError as error:
        return Ended(), _first(error)


def _died(training: PartTraining, tries: int, death: str) -> str:
    log = log_of(training)
    return f"{training.title}: its worker died {tries} times ({death}); {log} ends: {last_lines(log)}"


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster; the caller's own connection where there is one, which is then left open.

    Raises:
        WeightopsError: Ray is not installed, or the cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        raise WeightopsError(f"launch.address: {address}: run on a node of the cluster, and write host:port or auto")
    with patch.dict(os.environ, _PRIVATE if address is None else {}):
        ray = _ray()
        if ray.is_initialized():
            with _results_alone_on_stdout():
                yield ray
            return
        local = {"include_dashboard": False} if address is None else {}
        try:
            _reach(address)
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except Exception as error:  # Ray raises what grpc, redis and itself raise
            raise WeightopsError(
                f"launch: no Ray cluster answers at {address or 'this machine'} ({_first(error)}); start one with ray "
                "start --head, or name no address"
            ) from error
    try:
        if address is None:
            processors = ray.cluster_resources().get("CPU", 0)
            say(f"no Ray cluster is named: started one on this machine, with {processors:g} processors")
        with _results_alone_on_stdout():
            yield ray
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Connect to ``host:port``: where nothing listens, Ray itself would wait for many minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()


def _results_alone_on_stdout() -> redirect_stdout[Any]:
    """Ray prints of dead workers on standard output; for the length of the block it prints on standard error."""
    return redirect_stdout(sys.stderr)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise WeightopsError("launch: ray is not installed; pip install 'weightops[ray]'") from error


def _check_nodes(ray: Any, nodes: Sequence[Mapping[str, Any]], out: Path, models: Sequence[Path]) -> None:
    """Check that every node has our versions, and sees what we see.

    Raises:
        WeightopsError: a line for each node and thing.
    """
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    look = _looker()
    here = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    with tempfile.NamedTemporaryFile(dir=here, prefix=".weightops-") as seen:
        paths = [str(path) for path in (seen.name, Path.cwd(), *(model.absolute() for model in models))]
        asked = {}
        for node in nodes:
            on_it = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=on_it)
            asked[task.remote(paths, COMPARED)] = node["NodeManagerAddress"]
        problems = [problem for one, name in asked.items() for problem in _differences(ray, one, name, look, paths)]
    if problems:
        raise WeightopsError(*(f"launch: Ray node {problem}" for problem in dict.fromkeys(problems)))


def _differences(ray: Any, reference: Any, node: str, look: Callable[..., Any], paths: Sequence[str]) -> Iterator[str]:
    """What one node has that we do not have, or not the same."""
    try:
        versions, missing = ray.get(reference, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        yield f"{node}: does not answer ({_last(error)}); see to it, or take it out of the cluster"
        return
    ours, _ = look([], COMPARED)
    for name, version in versions.items():
        if version != ours[name]:
            has = f"has {name} {version}" if version else f"does not have {name}"
            yield f"{node}: {has}, and this machine has {ours[name]}; install the same version"
    for path in missing:
        shown = Path(path).parent if path == paths[0] else path
        yield f"{node}: does not see {shown}; give all nodes the same folders, by a filesystem that they share"


def _looker() -> Callable[[Sequence[str], Sequence[str]], tuple[dict[str, str | None], list[str]]]:
    """What a node is asked. A function inside a function, which Ray sends as code: the node may not have weightops."""

    def look(paths: Sequence[str], packages: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
        import importlib
        import os
        from importlib.metadata import PackageNotFoundError, version

        versions: dict[str, str | None] = {}
        for name in packages:
            try:
                ours = importlib.import_module("weightops.version").__version__ if name == "weightops" else None
                versions[name] = (ours or version(name)).partition("+")[0]  # a build for GPUs is the same version
            except (ImportError, PackageNotFoundError):
                versions[name] = None
        return versions, [path for path in paths if not os.path.exists(path)]

    return look


def _first(error: BaseException) -> str:
    """The first sentence of what Ray says."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__


def _last(error: BaseException) -> str:
    """The last line of what Ray says, which of an error in a task is the error itself."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__
