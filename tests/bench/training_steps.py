"""Steps of several training objectives on SmolLM2, timed in turn; each kind's memory is that of a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]


def in_process(module: str, *words: str | float) -> dict[str, Any]:
    """What a module of this package prints as its last line, in a process of its own.

    Raises:
        RuntimeError: it failed; the message holds what it wrote to stderr.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure_steps(kinds: Mapping[str, tuple[Callable[[], Any], Rows]], repeats: int) -> dict[str, Any]:
    """Take steps of every kind in turn: forward and backward, without the optimizer's step.

    Args:
        kinds: Objective and rows of each.

    Returns:
        Seconds of each step by kind, the first left out, and ``peak``: the process's peak of resident memory, bytes.
    """
    import torch

    from weightops.algebra.loading import load

    model, tokenizer = load("smollm2-135m-instruct", "float32")
    model.train()
    objectives = {kind: make().ready(model, tokenizer, rows) for kind, (make, rows) in kinds.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 1):
        for kind, objective in objectives.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = objective.loss_and_items(model, objective.batch(kinds[kind][1]))
            loss.backward()
            model.zero_grad()
            if repeat:  # the first step of each makes what the others reuse
                taken[kind].append(time.perf_counter() - begin)
    return {**taken, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
