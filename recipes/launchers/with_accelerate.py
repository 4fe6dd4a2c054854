"""Parts trained one after another, each by several processes that ``accelerate launch`` starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from weightops.errors import WeightopsError
from weightops.io.small_files import read_small
from weightops.recipes.floor.settings import Count
from weightops.recipes.parts.part_job import read_end, write_job
from weightops.recipes.parts.part_logs import PartLogs, last_lines, log_of
from weightops.recipes.parts.part_training import (
    Ended,
    Launcher,
    PartTraining,
    TrainAll,
    TrainPart,
    begin_run_folder,
)

WORKER = "weightops.recipes.part_worker"
_LOOK_SECONDS, _END_SECONDS = 0.5, 20.0


@dataclass(frozen=True)
class WithAccelerate(Launcher):
    """Train the parts one after another, each under ``accelerate launch``: DDP, FSDP or DeepSpeed.

    Attributes:
        config: File that ``accelerate config`` wrote; without one, accelerate's own default.
        processes: Processes of each part, on this machine; by default what the configuration says.
    """

    config: str | None = None
    processes: Count | None = None

    @contextmanager
    def ready(self, out: Path, models: Sequence[Path]) -> Iterator[TrainAll]:
        """Possible where accelerate is installed and its configuration is for this machine."""
        if find_spec("accelerate") is None:
            raise WeightopsError("launch: accelerate is not installed; pip install 'weightops[train]'")
        if self.config is not None:
            _check_config(self.config)
        yield self._train

    def command(self, job: Path) -> list[str]:
        """The command that trains the part of a job file."""
        words = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        words += ["--config_file", str(self.config)] if self.config is not None else []
        words += ["--num_machines", "1", "--num_processes", str(self.processes)] if self.processes is not None else []
        if self.config is None and (self.processes or 1) > 1:
            words.append("--multi_gpu")  # also starts processes on the CPU, where `--cpu` would want MPI
        return [*words, "-m", WORKER, str(job)]

    def _train(self, trainings: Sequence[PartTraining], train_part: TrainPart) -> dict[int, str]:
        with PartLogs(trainings) as logs:
            problems = {each.number: self._train_one(each, logs) for each in trainings}
        return {number: problem for number, problem in problems.items() if problem is not None}

    def _train_one(self, training: PartTraining, logs: PartLogs) -> str | None:
        begin_run_folder(training)
        log = log_of(training)
        code = _run(self.command(write_job(training)), log, logs)
        logs.ended()
        ended = read_end(training) or Ended()
        if code != 0 and not ended.problems:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return f"{training.title}: its processes ended with {how}; {log} ends: {last_lines(log)}"
        return ended.problem()


def _check_config(config: str) -> None:
    try:
        settings = yaml.safe_load(read_small(Path(config)))
    except (OSError, yaml.YAMLError, WeightopsError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WeightopsError(
            f"launch.config: {config}: cannot be read ({reason}); write it with accelerate config"
        ) from error
    machines = settings.get("num_machines", 1) if isinstance(settings, dict) else None
    if machines is None:
        raise WeightopsError(f"launch.config: {config}: holds no keys and values; write it with accelerate config")
    if machines != 1:
        raise WeightopsError(
            f"launch.config: {config}: is for {machines} machines, and parts are launched on this one alone; use "
            "with_ray for several"
        )


def _run(command: Sequence[str], log: Path, logs: PartLogs) -> int:
    """Run a command with its output in a log; its exit code. It ends with this process, however this one ends."""
    import torch

    on_cpu = {} if torch.accelerator.is_available() else {"ACCELERATE_USE_CPU": "true"}
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(torch.get_num_threads()), **on_cpu}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    try:
        while True:
            logs.show()
            try:
                return process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: those that train end when their standard input does."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
