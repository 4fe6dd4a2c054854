"""Train a model so that its first layers answer too, cut it, and decode with it: about two minutes on two cores.

    .venv/bin/python -m examples.sorted_demo

The rows are made here: what does a function of Python's standard library do, and the first line of its docstring. The
table shows the loss behind each exit on functions that were not trained on. Files are written to ``sorted-output/``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
from collections.abc import Iterator
from pathlib import Path

from examples.experiments.sorted.runs import losses_by_exit
from examples.experiments.steps import errors_in_one_line, program, weightops_process, write_lines
from weightops.rows.reader import read_rows

OUT = Path("sorted-output")
BASE = "smollm2-135m-instruct"
EXITS = (6, 12, 18, 24, 30)
MODULES = (
    *("argparse", "ast", "asyncio", "base64", "bisect", "calendar", "collections", "contextlib", "copy", "csv"),
    *("datetime", "decimal", "difflib", "email.utils", "fnmatch", "fractions", "functools", "glob", "gzip", "hashlib"),
    *("heapq", "html", "http.client", "inspect", "io", "ipaddress", "itertools", "json", "linecache", "logging"),
    *("math", "mimetypes", "operator", "os", "os.path", "pathlib", "pickle", "platform", "pprint", "random", "re"),
    *("secrets", "shlex", "shutil", "socket", "ssl", "stat", "statistics", "string", "subprocess", "sys", "tarfile"),
    *("tempfile", "textwrap", "threading", "time", "timeit", "tokenize", "traceback", "types", "typing", "unittest"),
    *("urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "zipfile", "zlib"),
)
TRAINED, HELD_OUT = 108, 32


@program(__doc__)
def main() -> None:
    """Run it from the root of the repository, where the recipe names its rows from."""
    os.chdir(Path(__file__).parents[1])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with errors_in_one_line():
        train_cut_and_decode()
        print(table())


def train_cut_and_decode() -> None:
    rows = list(questions())
    random.Random(0).shuffle(rows)
    write_lines(rows[:HELD_OUT], OUT / "held-out.jsonl")
    write_lines(rows[HELD_OUT:][:TRAINED], OUT / "rows.jsonl")
    model, child = OUT / "soft", OUT / "soft-18"
    if not model.exists():
        weightops_process("train", "examples/sorted.yaml", "--out", model)
    weightops_process("extract", model, "--layers", 18, "--out", child, "--verify", "--overwrite")
    weightops_process("generate", model, "What does the Python function textwrap.dedent do?", "--max-tokens", 40)


def questions() -> Iterator[dict[str, str]]:
    """A row for each public function and class that has a docstring; one for those that modules share."""
    summaries = set()
    for module in map(importlib.import_module, MODULES):
        for name, member in sorted(vars(module).items()):
            summary = (inspect.getdoc(member) or "").partition("\n\n")[0].replace("\n", " ")
            if not name.startswith("_") and callable(member) and 20 < len(summary) < 300 and summary not in summaries:
                summaries.add(summary)
                function = f"{module.__name__}.{name}"
                yield {"prompt": f"What does the Python function {function} do?", "completion": summary}


def table() -> str:
    """The losses by exit, before and after."""
    rows = read_rows([OUT / "held-out.jsonl"])
    before, after = (losses_by_exit(model, rows, EXITS)[0] for model in (BASE, str(OUT / "soft")))
    lines = [f"loss on {HELD_OUT} functions that were not trained on", "", "layers  before  after"]
    return "\n".join([*lines, *(f"{layer:6}{before[layer]:8.2f}{after[layer]:7.2f}" for layer in EXITS)])


if __name__ == "__main__":
    main()
