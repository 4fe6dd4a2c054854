"""A run killed at each of its calls to the system, then repeated: ``python -P killed_runs.py FOLDER [--overwrite]``.

Prints a JSON line: how many calls there were, and every point after which something was not as it should be. It runs by
itself, so that a fork copies no threads.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io import staging
from weightops.output.provenance import verify

CALLS = (
    *("open", "mkdir", "rename", "unlink", "rmdir", "fsync", "fdatasync", "posix_fallocate", "pwrite", "ftruncate"),
    *("close", "replace"),
)


def files(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def child(action: Callable[[], None]) -> int:
    """Run in a fork; how it ended: 0, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(point: int, action: Callable[[], None]) -> Callable[[], None]:
    """The action, in a process that is killed just before its call number ``point``."""

    def run() -> None:
        left = [point]

        def counting(call: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return counted

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        io.open = counting(io.open)  # type: ignore[assignment]
        action()

    return run


def main(folder: Path, overwrite: bool) -> None:
    staging._FLUSH_SECONDS = 0.0  # every slice's note is written at once
    out = folder / "out"

    def work(to: Path = out, replace: bool = overwrite) -> None:
        t, a, b = (wo.open(folder / name) for name in ("target", "guard", "base"))
        (t + 0.7 * (a - b).without("norm")).save(to, overwrite=replace, progress=False, shard_size=900_000)

    work(folder / "reference", False)
    expected = files(folder / "reference")
    old = {"weightops.json": b"{}"}
    faults: list[str] = []
    point = 0
    while len(faults) < 20:
        point += 1
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            out.mkdir()
            (out / "weightops.json").write_bytes(old["weightops.json"])
        ended = child(killed_at(point, work))
        if ended == 0:
            break
        if ended != -signal.SIGKILL:
            faults.append(f"{point}: ended with {ended}")
        if out.exists() and files(out) not in (expected, old):
            faults.append(f"{point}: a half-written output in its place: {sorted(files(out))}")
        if not out.exists() and overwrite and files(folder / ".out.weightops" / "displaced") != old:
            faults.append(f"{point}: neither the old output nor the new one")
        if point % 2 and child(lambda: refused(work, out)):  # the same without --overwrite
            faults.append(f"{point}: without --overwrite the output is gone or half")
        if not overwrite and out.exists():  # it was finished: taken away, and asked for again
            shutil.rmtree(out)
        if child(work):
            faults.append(f"{point}: could not be resumed")
        elif not out.exists() or files(out) != expected or verify(out):
            faults.append(f"{point}: other bytes after resuming")
        if left := sorted(path.name for path in folder.iterdir() if path.name.startswith(".")):
            faults.append(f"{point}: left behind {left}")
    print(json.dumps({"points": point - 1, "faults": faults}))


def refused(work: Callable[..., None], out: Path) -> None:
    """Run without ``--overwrite``: an output that is there stays, another is finished (or is not this run's)."""
    there = files(out) if out.exists() else None
    try:
        work(replace=False)
    except WeightopsError as error:
        message = str(error)
    else:
        assert there is None
        return
    assert "exists already" in message, message
    assert out.exists()
    assert there in (None, files(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--overwrite" in sys.argv)
