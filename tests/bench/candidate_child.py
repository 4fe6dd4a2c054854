"""Times one candidate of a search in place, and written and loaded again: ``candidate_child.py REPEATS BASE A B OUT``.

A candidate is the base with two models' changes, each time in other shares. The forward pass is in neither time, as it is
the same in both. The last line on stdout is JSON: seconds of each repeat.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable

import weightops as wo
from weightops.algebra.loading import load_model
from weightops.algebra.patching import PatchedModel


def main() -> None:
    repeats, out = int(sys.argv[1]), sys.argv[5]
    base, one, other = map(wo.open, sys.argv[2:5])
    model = PatchedModel(load_model(base))

    def candidate(number: int) -> wo.Checkpoint:
        share = 1 / (2 + number)
        return base + share * (one - base) + (1 - share) * (other - base)

    def in_place(number: int) -> None:
        with model.wearing(candidate(number).plan()):
            pass

    def reloaded(number: int) -> None:
        load_model(wo.open(candidate(number).save(out, progress=False)))

    times: dict[str, list[float]] = {"in place": [], "reloaded": []}
    for number in range(repeats + 1):  # the first of each loads and allocates what the others have
        for name, step in (("in place", in_place), ("reloaded", reloaded)):
            shutil.rmtree(out, ignore_errors=True)
            times[name].append(_seconds(step, number))
    print(json.dumps({name: seconds[1:] for name, seconds in times.items()}))


def _seconds(step: Callable[[int], None], number: int) -> float:
    begin = time.perf_counter()
    step(number)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
