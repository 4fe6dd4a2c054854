"""Runs one program inside the sandbox: limits itself, then runs what it is given on standard input.

Started by ``sandbox.py`` alone, with nothing of weightops to import. The last thing that it prints is a word that came
with the program, so a program that ends early with exit code 0 is not taken for one that ran to its end.
"""

import json
import resource
import sys


def main() -> None:
    """Read the limits, the program and the word; run the program; print the word."""
    given = json.load(sys.stdin)
    memory, seconds, file_bytes = given["memory"], given["seconds"], given["file_bytes"]
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    program, word = compile(given["program"], "program", "exec"), given["word"]
    del given
    exec(program, {"__name__": "__main__"})
    sys.stdout.flush()
    sys.__stdout__.write(word)  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
