"""A Ray cluster: connected to, or started on this machine, and compared with this machine.

Where no cluster is named, one is started on this machine for the length of the run: without Ray's usage report, and
with no port open to others.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from ..errors import WeightopsError
from ..io.progress import say

_REACH_SECONDS, _ANSWER_SECONDS = 10.0, 120.0
_PRIVATE: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: without it, Ray listens on the local host alone
}

#: The version of each package, or ``None``, and the bytes of each path: -1 for a folder, ``None`` for nothing there.
Seen = tuple[dict[str, str | None], dict[str, int | None]]


@contextmanager
def connected(address: str | None, place: str, processors: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster; the caller's own connection where there is one, which is then left open.

    Args:
        address: ``host:port`` or ``auto``; by default RAY_ADDRESS, and without that a cluster of this machine alone.
        place: What asks for the cluster, at the beginning of messages.
        processors: Of a cluster that is started here; by default those of the machine.

    Raises:
        WeightopsError: Ray is not installed, or the cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        raise WeightopsError(f"{place}.address: {address}: run on a node of the cluster, and write host:port or auto")
    with patch.dict(os.environ, _PRIVATE if address is None else {}):
        ray = _ray(place)
        if ray.is_initialized():
            with _results_alone_on_stdout():
                yield ray
            return
        local = {"include_dashboard": False, "num_cpus": processors} if address is None else {}
        try:
            _reach(address)
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except Exception as error:  # Ray raises what grpc, redis and itself raise
            raise WeightopsError(
                f"{place}: no Ray cluster answers at {address or 'this machine'} ({first_sentence(error)}); start one "
                "with ray start --head, or leave the address out to start one on this machine"
            ) from error
    try:
        if address is None:
            started = ray.cluster_resources().get("CPU", 0)
            say(f"no Ray cluster is named: started one on this machine, with {started:g} processors")
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


def _ray(place: str) -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise WeightopsError(f"{place}: ray is not installed; pip install 'weightops[ray]'") from error


def check_nodes(
    ray: Any,
    nodes: Sequence[Mapping[str, Any]],
    place: str,
    *,
    packages: Sequence[str],
    out: Path,
    inputs: Sequence[Path],
) -> None:
    """Check that every node has our versions, and sees our files.

    Args:
        nodes: As Ray describes them.
        place: What asks for the cluster, at the beginning of messages.
        packages: Those whose versions must be ours.
        out: What the run writes.
        inputs: The files and folders that it reads.

    Raises:
        WeightopsError: a line for each node and thing.
    """
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    look = _looker()
    here = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    with tempfile.NamedTemporaryFile(dir=here, prefix=".weightops-") as mark:
        paths = [mark.name, *(str(path.absolute()) for path in (Path.cwd(), *inputs))]
        looking = {}
        for node in nodes:
            on_it = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=on_it)
            looking[task.remote(paths, packages)] = node["NodeManagerAddress"]
        ours = look(paths, packages)
        shown = {path: path for path in paths} | {mark.name: str(here)}
        problems = [
            f"{place}: Ray node {name}: {difference}"
            for reference, name in looking.items()
            for difference in _differences(ray, reference, ours, shown)
        ]
    if problems:
        raise WeightopsError(*dict.fromkeys(problems))


def _differences(ray: Any, reference: Any, ours: Seen, shown: Mapping[str, str]) -> Iterator[str]:
    """What one node does not have as we have it.

    Args:
        shown: The name of each path in messages.
    """
    try:
        versions, sizes = ray.get(reference, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        yield f"does not answer ({last_line(error)}); repair it, or take it out of the cluster"
        return
    for name, version in versions.items():
        if version != ours[0][name]:
            has = f"has {name} {version}" if version else f"does not have {name}"
            yield f"{has}, and this machine has {ours[0][name]}; install the same version"
    for path, size in sizes.items():
        if size is None:
            yield f"does not see {shown[path]}; give all nodes the same folders, by a filesystem that they share"
        elif size != ours[1][path]:
            yield f"sees another file at {shown[path]}, of {size} bytes; give all nodes the same files"


def _looker() -> Callable[[Sequence[str], Sequence[str]], Seen]:
    """What a node does to look. A function inside a function, which Ray sends as code: the node may lack weightops."""

    def look(paths: Sequence[str], packages: Sequence[str]) -> Seen:
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
        sizes: dict[str, int | None] = {}
        for path in paths:
            try:
                sizes[path] = -1 if os.path.isdir(path) else os.stat(path).st_size
            except OSError:
                sizes[path] = None
        return versions, sizes

    return look


def first_sentence(error: BaseException) -> str:
    """The first sentence of what Ray says."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of what Ray says, which of an error in a task is the error itself."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__
