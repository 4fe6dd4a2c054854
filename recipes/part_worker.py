"""A process that trains one part: ``python -m weightops.recipes.part_worker JOB``, by hand or under accelerate."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from weightops.recipes.catalog import part_trainer, settings_of
from weightops.recipes.parts.part_job import read_job, routine_of, write_end
from weightops.recipes.parts.part_training import attempt_apart


def main(job: str) -> int:
    """Train the part of a job file, and note beside the file how that ended; the exit code."""
    training = read_job(Path(job), settings_of)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    ended = attempt_apart(part_trainer(routine_of(training)), training)
    write_end(training, ended)
    return 1 if ended.problems else 0


def _end_with_the_parent() -> None:
    """End this process when standard input ends: the process that holds its other end is then gone."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
