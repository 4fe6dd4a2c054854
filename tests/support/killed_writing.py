"""Processes that are killed while they write a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_KILLING = """
import os, signal
from weightops.io import staging
staging._FLUSH_SECONDS = 0.0
left, record = [{slices}], staging.Staging.record
def killing(self, entry):
    record(self, entry)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
staging.Staging.record = killing
"""


def killed_after(slices: int, code: str, *words: object, cwd: Path | None = None) -> None:
    """Run Python code in a process that kills itself once some slices are on record; the words are its arguments."""
    command = [sys.executable, "-c", _KILLING.format(slices=slices) + code, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PYTHONSAFEPATH": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
