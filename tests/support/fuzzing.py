"""Hostile files from sound ones, and the law that all readers keep: a WeightopsError or a value, soon, in little memory.

``FUZZ_CASES`` says how many cases each surface gets; ``make fuzz`` sets it to 100,000.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from weightops.errors import MOST_CHARACTERS, WeightopsError

MOST_SECONDS = 2.0
MOST_MEMORY = 500_000_000


def fuzzed(cases: int) -> settings:
    """Settings of a surface: ``cases`` in the usual run, ``FUZZ_CASES`` where it is set."""
    return settings(
        max_examples=int(os.environ.get("FUZZ_CASES", cases)),
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def keeps_the_law(action: Callable[[], object]) -> bool:
    """Run a reader on one case; whether it accepted the case.

    Raises:
        AssertionError: it took too long or too much memory, or its message is not one short line a problem.
        Exception: whatever it raised that is no WeightopsError.
    """
    before, begin = _memory(reset=True), time.process_time()
    problems: tuple[str, ...] | None = None
    try:
        action()
    except WeightopsError as error:
        problems = error.problems
    seconds, taken = time.process_time() - begin, _memory() - before
    assert seconds < MOST_SECONDS, f"{seconds:.1f} s"
    assert taken < MOST_MEMORY, f"{taken} bytes"
    if problems is None:
        return True
    assert problems
    assert all(problem and "\n" not in problem and len(problem) <= 10 * MOST_CHARACTERS for problem in problems)
    return False


def peak_memory(action: Callable[[], object]) -> int:
    """Bytes of memory that an action takes at its peak, beyond what the process had; 0 on other systems than Linux."""
    before = _memory(reset=True)
    action()
    return _memory() - before


def _memory(*, reset: bool = False) -> int:
    """Bytes in memory now, or, without ``reset``, at most since the last reset. Linux alone can say that; 0 elsewhere."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmRSS" if reset else "VmHWM"))
    return int(line.split()[1]) * 1024


# --- bytes -----------------------------------------------------------------------------------------------------------

#: Numbers at which readers go wrong, as little-endian words and as digits.
_EDGES = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    1 << 15,
    (1 << 16) - 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 60,
    (1 << 64) - 1,
)
_WORDS = tuple({edge.to_bytes(size, "little") for edge in _EDGES for size in (1, 2, 4, 8) if edge < 1 << 8 * size})


@st.composite
def mutated_bytes(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """A sound file with a few bytes changed, taken away, put in, repeated or cut off.

    Args:
        words: Further pieces to put in, such as a format's own keywords.
    """
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        piece = draw(st.one_of(st.sampled_from((*_WORDS, *words)), st.binary(min_size=1, max_size=4)))
        how = draw(st.sampled_from(("over", "over", "insert", "delete", "repeat", "flip", "cut")))
        if how == "over":
            raw[place : place + len(piece)] = piece
        elif how == "insert":
            raw[place:place] = piece
        elif how == "delete":
            del raw[place : place + draw(st.integers(1, 40))]
        elif how == "repeat":
            part = raw[place : place + draw(st.integers(1, 60))]
            raw[place:place] = part * draw(st.sampled_from((1, 2, 50, 2000)))
        elif how == "flip" and raw:
            raw[place] ^= 1 << draw(st.integers(0, 7))
        elif draw(st.integers(0, 4)) == 0:
            del raw[place:]
    return bytes(raw)


# --- values ----------------------------------------------------------------------------------------------------------

_DEEP: Any = 1
for _ in range(200):
    _DEEP = [_DEEP]

#: What a stranger may write where a number, a text, a list or a table is expected.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1 << 31, 1 << 63, 1 << 64, 10**12, -(10**12), 10**90, 10**400),
    *(0.0, -0.5, 0.5, 1e308, -1e308, 1e-320, float("inf"), float("nan")),
    *("", " ", "a", "0", "1e5", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "x\ny", "é" * 300, "n" * 100_000),
    *("(a+)+$", "(", "[", "*", "{text}", "{", "auto", "union", "base", "none", "@", "+", "a+b", "a@b"),
    *([], [[]], [None], [1, 2], [-1, 10**12], ["a", "b"], [1] * 5000, _DEEP),
    *({}, {"": None}, {"a": {}}, {"a": 1, "b": [1]}, {str(n): n for n in range(2000)}),
)  # fmt: skip


@st.composite
def mutated_values(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """A sound value (of JSON or YAML) with some of its parts replaced, taken away, renamed or doubled."""
    root = [json.loads(json.dumps(draw(st.sampled_from(seeds))))]
    for _ in range(draw(st.integers(1, 4))):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 3)):
            holder = holder[key]
            key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        how = draw(st.sampled_from(("replace", "replace", "replace", "delete", "rename", "double")))
        if how == "delete" and holder is not root:
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            name = draw(st.sampled_from([value for value in HOSTILE if isinstance(value, str)]))
            holder[name] = holder.pop(key)
        elif how == "double" and isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
    return root[0]


def as_json(value: Any) -> bytes:
    """JSON as a stranger may write it: with NaN, long numbers and half surrogate pairs."""
    return json.dumps(value).encode()
