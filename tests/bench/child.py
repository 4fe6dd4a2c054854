"""Runs a weightops command inside a fresh interpreter and takes the time of what comes after the imports.

Run as a file: ``python -P child.py COMMAND [ARGUMENT]... [-- [ARGUMENT]...]...``. The command runs once for each group
of arguments; only the last is timed, so that a first, tiny one can load what the command loads late (numba's compiled
kernels, and the modules that numba imports with the first of them). Without arguments only the imports are done. The
last line on stdout is JSON: seconds of wall and processor, and the modules that were imported while the time ran.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time

#: What each command imports sooner or later, and when it is called.
IMPORTS = {
    "compose-guard": (
        "weightops.cli.compose_guard",
        "weightops.algebra.opening",
        "weightops.guard.compose",
        "weightops.output.save",
    ),
    "merge": (
        "weightops.cli.merge",
        "weightops.algebra.opening",
        "weightops.merge.run",
        "weightops.engine.merging",
    ),
    "extract": (
        "weightops.cli.extract",
        "weightops.algebra.cutting",
        "weightops.output.save",
        "weightops.engine.kernels",
    ),
    "adapters": (
        "weightops.cli.adapters",
        "weightops.algebra.opening",
        "weightops.adapters.adapter_merge",
        "weightops.adapters.extraction",
    ),
}


def main() -> None:
    command, *words = sys.argv[1:]
    for name in IMPORTS[command]:
        importlib.import_module(name)
    cli = importlib.import_module("weightops.cli")
    *earlier, last = _groups(words)
    for arguments in earlier:
        cli.main([command, *arguments], standalone_mode=False)
    _make_room(last)
    known = set(sys.modules)
    begin, cpu = time.perf_counter(), _cpu()
    if last:
        cli.main([command, *last], standalone_mode=False)
    took = {"wall": time.perf_counter() - begin, "cpu": _cpu() - cpu}
    print(json.dumps(took | {"late": sorted(set(sys.modules) - known)}))


def _groups(words: list[str]) -> list[list[str]]:
    """The words between the ``--``."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            groups.append([])
        else:
            groups[-1].append(word)
    return groups


def _make_room(words: list[str]) -> None:
    """Remove the output of an earlier run, at ``--out`` or at the last argument, now and not before the imports.

    A virtual machine gives memory back that has been free for a second or two, and pays to get it again: every program
    that is compared writes into memory that was freed a moment ago.
    """
    if words:
        out = words[words.index("--out") + 1] if "--out" in words else words[-1]
        shutil.rmtree(out, ignore_errors=True)


def _cpu() -> float:
    used = os.times()
    return used.user + used.system


if __name__ == "__main__":
    main()
