"""A Disperse-then-Merge recipe of a tiny model and a few rows, and the processes that train its parts."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightops.recipes.floor.settings import Data, Training
from weightops.recipes.parts.disperse import Dispersal
from weightops.recipes.routines.disperse_then_merge import DisperseThenMergeRecipe
from weightops.recipes.updates.lora import Lora

TARGETS = ("gate_proj", "up_proj", "down_proj")


def parts_recipe(base: Path, folder: Path, parts: int = 3, epochs: int = 2, **settings: Any) -> DisperseThenMergeRecipe:
    """30 rows whose answers are of three lengths, one a task; a fifth of them is held out."""
    rows = [{"prompt": f"what is {n}?", "completion": "safe" * (1 + n % 3), "task": "abc"[n % 3]} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = Training(
        lr=1e-2, epochs=epochs, batch=4, precision="fp32", save_dtype="float32", checkpoint_every=5,
        update=Lora(4, 4.0, 0.0, TARGETS),
    )  # fmt: skip
    data = Data((str(folder / "rows.jsonl"),), held_out=0.2)
    made = {"tokens": 128, "training": training, "disperse": Dispersal(parts), **settings}
    return DisperseThenMergeRecipe(str(base), data, **made)


@contextmanager
def killing(parts: Path, number: int, times: int, workers: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Kill the processes of a part, each time after it has written a checkpoint of its own.

    Args:
        parts: The folder of the sub-models.
        number: Of the part.
        times: How often.
        workers: The processes that train the part now.

    Yields:
        The processes that were killed so far.
    """
    killed: list[int] = []
    ended = threading.Event()

    def steps() -> set[str]:
        return {each.parent.name for each in parts.glob(f".part-{number}.training/checkpoint-*/trainer_state.json")}

    def watch() -> None:
        seen: set[str] = set()
        while not ended.is_set() and len(killed) < times:
            alive = [pid for pid in workers() if pid not in killed]
            if alive and (new := steps() - seen):
                seen |= new
                os.kill(alive[0], signal.SIGKILL)
                killed.append(alive[0])
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
